//! Maps, entry point, and the way from verdict to action.

use aya_ebpf::{
    Global,
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    macros::{map, xdp},
    maps::{Array, PerCpuArray, XskMap},
    programs::XdpContext,
};
use aya_log_ebpf::debug;
use relay_common::{
    abi::{
        Counter, SESSION_SLOTS, SOCKET_SLOTS, SessionEntry, TAG_ROWS, TAGS_PER_ROW, session_tag, tag_place,
        tag_row,
    },
    classify::{DropReason, Ports, Verdict, classify},
};

use crate::cursor::FrameCursor;

#[map]
static SESSIONS: Array<SessionEntry> = Array::with_max_entries(SESSION_SLOTS, 0);
#[map]
static TAGS: Array<[u8; TAGS_PER_ROW]> = Array::with_max_entries(TAG_ROWS, 0);
#[map]
static SOCKETS: XskMap = XskMap::with_max_entries(SOCKET_SLOTS, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

// SAFETY: the names are this object's own; the loader finds the globals by them.
#[unsafe(no_mangle)]
static RELAY_PORT: Global<u16> = Global::new(0);
// SAFETY: as above.
#[unsafe(no_mangle)]
static RELAY_PORTS: Global<u16> = Global::new(0);
// SAFETY: as above.
#[unsafe(no_mangle)]
static RELAY_LOG: Global<u8> = Global::new(0);

#[xdp]
fn evenwire(context: XdpContext) -> u32 {
    let session = |slot, index| {
        let tags = TAGS.get(tag_row(slot))?;
        if tags[tag_place(slot)] != session_tag(index) {
            return None;
        }
        SESSIONS.get(slot).copied()
    };
    let ports = Ports { first: RELAY_PORT.load(), count: RELAY_PORTS.load() };
    match classify(FrameCursor::new(&context), ports, session) {
        Verdict::Pass => {
            count(Counter::Passed);
            XDP_PASS
        }
        Verdict::Handshake(_) => {
            count(Counter::Handshake);
            XDP_PASS
        }
        Verdict::Redirect { queue, .. } => redirect(&context, queue),
        Verdict::Drop(reason) => drop(&context, reason),
    }
}

/// Hands the frame to the socket of the queue it arrived on: the kernel refuses any other, without a counter. Its
/// worker passes the cell on where another one owns the session.
#[inline(always)]
fn redirect(context: &XdpContext, owner: u32) -> u32 {
    let queue = context.rx_queue_index();
    // The helper looks the socket up itself: with none there it answers with the flags, XDP_DROP.
    match SOCKETS.redirect(queue, u64::from(XDP_DROP)) {
        Ok(action) => {
            if queue != owner {
                count(Counter::OtherQueue);
            }
            count(Counter::Redirected);
            action
        }
        Err(_) => drop(context, DropReason::NoSocket),
    }
}

#[inline(always)]
fn drop(context: &XdpContext, reason: DropReason) -> u32 {
    count(Counter::Dropped(reason));
    if RELAY_LOG.load() != 0 {
        debug!(context, "dropped, reason {}", reason as u32);
    }
    XDP_DROP
}

#[inline(always)]
fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter.index()) {
        // SAFETY: the entry is this CPU's own, and XDP programs do not interrupt each other on one CPU, so nothing
        // else holds a reference to it or writes it meanwhile.
        unsafe { *value = (*value).wrapping_add(1) };
    }
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
