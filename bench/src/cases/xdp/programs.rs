//! The programs in the kernel: the relay's, and those that do next to nothing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, PerCpuArray, XskMap};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use relay_common::abi::{
    Counter, GLOBAL_PORT, GLOBAL_PORTS, MAP_COUNTERS, MAP_SESSIONS, MAP_SOCKETS, MAP_TAGS, PROGRAM,
    SESSION_ENTRY_LEN, TAGS_PER_ROW, session_slot, session_tag, tag_place, tag_row,
};
use relay_user::steering::OBJECT;
use rustix::net::{AddressFamily, SocketType};

use super::frames::{Kind, PORT, session};

/// The programs that only benchmarks load, built by `cargo xtask ebpf build`.
static FLOOR: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../relay-ebpf/floor.bpf.o"));

/// Returns `XDP_DROP`.
pub(super) const DROP: &str = "floor_drop";
/// Returns `XDP_PASS`.
pub(super) const PASS: &str = "floor_pass";
/// Returns `XDP_TX`.
pub(super) const FLOOD: &str = "flood";
/// Writes a random receiver index and returns `XDP_TX`.
pub(super) const FLOOD_INDICES: &str = "flood_indices";

/// The relay's program with one session and a socket.
pub(super) struct Relay {
    ebpf: Ebpf,
    // The kernel takes a closed socket out of the map.
    _socket: OwnedFd,
}

impl Relay {
    pub(super) fn load() -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .override_global(GLOBAL_PORT, &PORT, true)
            .override_global(GLOBAL_PORTS, &1u16, true)
            .load(OBJECT)
            .context("the relay's XDP object")?;
        let entry = session();
        let sessions = ebpf.map_mut(MAP_SESSIONS).context("no map of sessions")?;
        let mut sessions: Array<_, [u8; SESSION_ENTRY_LEN]> = sessions.try_into()?;
        sessions.set(session_slot(entry.receiver_index), entry.to_bytes(), 0)?;
        let slot = session_slot(entry.receiver_index);
        let mut tags: Array<_, [u8; TAGS_PER_ROW]> =
            ebpf.map_mut(MAP_TAGS).context("no map of tags")?.try_into()?;
        let mut row = tags.get(&tag_row(slot), 0)?;
        row[tag_place(slot)] = session_tag(entry.receiver_index);
        tags.set(tag_row(slot), row, 0)?;
        let socket = rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None)
            .context("an AF_XDP socket; the kernel needs CONFIG_XDP_SOCKETS")?;
        rustix::net::sockopt::set_xdp_rx_ring_size(&socket, 64).context("its receive ring")?;
        let mut sockets: XskMap<_> = ebpf.map_mut(MAP_SOCKETS).context("no map of sockets")?.try_into()?;
        sockets.set(0, socket.as_raw_fd(), 0)?;
        load(&mut ebpf, PROGRAM)?;
        Ok(Self { ebpf, _socket: socket })
    }

    /// Frames counted so far.
    pub(super) fn counted(&self, counter: Counter) -> Result<u64> {
        let map = self.ebpf.map(MAP_COUNTERS).context("no map of counters")?;
        let map: PerCpuArray<_, u64> = map.try_into()?;
        Ok(map.get(&counter.index(), 0)?.iter().sum())
    }

    /// ns per run, on average of `runs`.
    pub(super) fn run(&self, frame: &[u8], runs: u32) -> Result<f64> {
        test_run(&self.ebpf, PROGRAM, frame, runs)
    }

    /// That a frame of this kind is counted as one.
    pub(super) fn check(&self, kind: Kind, frame: &[u8]) -> Result<()> {
        let before = self.counted(kind.counter())?;
        self.run(frame, 1)?;
        let counted = self.counted(kind.counter())? - before;
        ensure!(counted == 1, "the program does not take a frame for {}", kind.name());
        Ok(())
    }

    pub(super) fn attach(&mut self, interface: u32) -> Result<XdpLink> {
        attach(&mut self.ebpf, PROGRAM, interface)
    }
}

/// The programs that do next to nothing.
pub(super) struct Floor(Ebpf);

impl Floor {
    pub(super) fn load() -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(FLOOR).context("the XDP object to compare with")?;
        for name in [DROP, PASS, FLOOD, FLOOD_INDICES] {
            load(&mut ebpf, name)?;
        }
        Ok(Self(ebpf))
    }

    /// ns per run of `program`, on average of `runs`.
    pub(super) fn run(&self, program: &'static str, frame: &[u8], runs: u32) -> Result<f64> {
        test_run(&self.0, program, frame, runs)
    }

    pub(super) fn attach(&mut self, program: &'static str, interface: u32) -> Result<XdpLink> {
        attach(&mut self.0, program, interface)
    }

    /// Lets `program` act on `frames` live frames as if they had come in on `interface`. Returns the time that took,
    /// receivers included, by the kernel's clock: the call takes milliseconds more, to prepare.
    pub(super) fn send(
        &self,
        program: &'static str,
        frame: &[u8],
        interface: u32,
        frames: u32,
        batch: u32,
    ) -> Result<Duration> {
        // struct xdp_md of uapi/linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let end = u32::try_from(frame.len())?;
        let context: Vec<u8> = [0, end, 0, interface, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::new()
        };
        let result = of(&self.0, program)?
            .test_run(options)
            .context("sending live frames through BPF_PROG_TEST_RUN; it takes Linux 5.18")?;
        Ok(result.duration * frames)
    }
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<()> {
    let program: &mut Xdp =
        ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    program.load().with_context(|| format!("loading {name}"))
}

fn of<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a Xdp> {
    Ok(ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn attach(ebpf: &mut Ebpf, name: &'static str, interface: u32) -> Result<XdpLink> {
    let program: &mut Xdp =
        ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    let attached = program.attach_to_if_index(interface, XdpMode::Driver);
    let id = attached.with_context(|| format!("attaching {name} natively to interface {interface}"))?;
    Ok(program.take_link(id)?)
}

fn test_run(ebpf: &Ebpf, name: &'static str, frame: &[u8], runs: u32) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(frame), repeat: runs, ..TestRunOptions::new() };
    let result = of(ebpf, name)?.test_run(options).with_context(|| format!("running {name}"))?;
    // The kernel's own measurement: the call takes milliseconds more, to bring the program into its XDP dispatcher.
    Ok(result.duration.as_secs_f64() * 1e9)
}
