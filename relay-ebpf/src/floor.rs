//! Programs that do next to nothing, for benchmarks to hold Evenwire's beside. They stand in an object of their own,
//! which no relay loads.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "packet bytes are only reachable through pointers; the verifier checks each access"
    )
)]

#[cfg(target_arch = "bpf")]
mod floor {
    use aya_ebpf::{
        bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
        helpers::bpf_get_prandom_u32,
        macros::xdp,
        programs::XdpContext,
    };

    /// Of an IPv4 datagram's frame: Ethernet 14, IPv4 20, UDP 8, type 1, zero 3.
    const RECEIVER_INDEX: usize = 46;

    #[xdp]
    fn floor_drop(_: XdpContext) -> u32 {
        XDP_DROP
    }

    #[xdp]
    fn floor_pass(_: XdpContext) -> u32 {
        XDP_PASS
    }

    /// Sends the frame out of the interface it came from.
    #[xdp]
    fn flood(_: XdpContext) -> u32 {
        XDP_TX
    }

    /// As `flood`, with another receiver index in each frame, as somebody who guesses them would send.
    #[xdp]
    fn flood_indices(context: XdpContext) -> u32 {
        let at = context.data() + RECEIVER_INDEX;
        if at + size_of::<u32>() > context.data_end() {
            return XDP_DROP;
        }
        // SAFETY: these four bytes are below the packet's end by the line above, and any bytes may stand there; the
        // write needs no alignment.
        unsafe { (at as *mut u32).write_unaligned(bpf_get_prandom_u32()) };
        XDP_TX
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // The verifier refuses an endless loop: a program that loads cannot panic.
        loop {}
    }

    // SAFETY: the section holds the object's licence as a string that ends in zero, and nothing else.
    #[unsafe(link_section = "license")]
    // SAFETY: the name is this object's own.
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
