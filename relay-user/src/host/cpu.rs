//! Processors: which there are, what shares them, how deep they sleep and who takes them away.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{number, text};

const CPUS: &str = "/sys/devices/system/cpu";

/// Processors by number.
pub(crate) type CpuSet = BTreeSet<usize>;

/// The kernel's list format, `0-3,8`. Empty for an empty or `(null)` list.
pub(crate) fn parse_list(list: &str) -> CpuSet {
    let mut cpus = CpuSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cpus.extend(first..=last.min(first.saturating_add(4096)));
        }
    }
    cpus
}

/// A set in the kernel's list format.
pub(crate) fn format_list(cpus: &CpuSet) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let show = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(",")
}

/// The processors that run.
pub(crate) fn online() -> CpuSet {
    text(format!("{CPUS}/online")).map(|list| parse_list(&list)).unwrap_or_default()
}

/// The processors that the scheduler keeps other programs off (`isolcpus`).
pub(crate) fn isolated() -> CpuSet {
    text(format!("{CPUS}/isolated")).map(|list| parse_list(&list)).unwrap_or_default()
}

/// The processors whose timer stops while one program has them. `None` on a kernel without NO_HZ_FULL.
pub(crate) fn tickless() -> Option<CpuSet> {
    text(format!("{CPUS}/nohz_full")).map(|list| parse_list(&list))
}

/// The processors of `cpu`'s core, itself among them.
pub(crate) fn siblings(cpu: usize) -> CpuSet {
    let list = text(format!("{CPUS}/cpu{cpu}/topology/thread_siblings_list"));
    list.map(|list| parse_list(&list)).unwrap_or_default()
}

/// The NUMA node of `cpu`.
pub(crate) fn node(cpu: usize) -> Option<u32> {
    let entries = std::fs::read_dir(format!("{CPUS}/cpu{cpu}")).ok()?;
    entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// The processors of NUMA node `node`.
pub(crate) fn of_node(node: u32) -> CpuSet {
    let list = text(format!("/sys/devices/system/node/node{node}/cpulist"));
    list.map(|list| parse_list(&list)).unwrap_or_default()
}

/// The frequency governor of `cpu`. `None` where its frequency is not the kernel's to choose.
pub(crate) fn governor(cpu: usize) -> Option<String> {
    text(format!("{CPUS}/cpu{cpu}/cpufreq/scaling_governor"))
}

/// A state that an idle processor may go into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdleState {
    /// Its number, in the order of depth.
    pub(crate) index: usize,
    /// The driver's name for it.
    pub(crate) name: String,
    /// Microseconds that waking takes.
    pub(crate) latency: u64,
}

/// The deepest state that is not disabled for `cpu`. `None` without cpuidle.
pub(crate) fn deepest_idle(cpu: usize) -> Option<IdleState> {
    // Drivers have ten states at most (CPUIDLE_STATE_MAX).
    let states = (0..10).map_while(|index| {
        let place = PathBuf::from(format!("{CPUS}/cpu{cpu}/cpuidle/state{index}"));
        let name = text(place.join("name"))?;
        let latency = number(place.join("latency"))?;
        let enabled = text(place.join("disable")).is_none_or(|disabled| disabled == "0");
        Some((IdleState { index, name, latency }, enabled))
    });
    states.filter(|(_, enabled)| *enabled).map(|(state, _)| state).max_by_key(|state| state.latency)
}

/// What a processor did since boot, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticks {
    /// All together.
    pub(crate) total: u64,
    /// Wanted by this machine, and given to another by the hypervisor.
    pub(crate) stolen: u64,
}

/// The line of `cpu` in `/proc/stat`.
pub(crate) fn parse_ticks(stat: &str, cpu: usize) -> Option<Ticks> {
    let name = format!("cpu{cpu}");
    let mut fields = stat
        .lines()
        .map(str::split_ascii_whitespace)
        .find_map(|mut fields| (fields.next() == Some(name.as_str())).then_some(fields))?;
    let mut ticks = Ticks::default();
    // user nice system idle iowait irq softirq steal; guest time is within user time.
    for index in 0..8 {
        let value: u64 = fields.next()?.parse().ok()?;
        ticks.total += value;
        if index == 7 {
            ticks.stolen = value;
        }
    }
    Some(ticks)
}

/// [`Ticks`] of `cpu` now.
pub(crate) fn ticks(cpu: usize) -> Option<Ticks> {
    parse_ticks(&text("/proc/stat")?, cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for list in ["", "0", "0-3", "0,2-4,7"] {
            assert_eq!(format_list(&parse_list(list)), list);
        }
        assert_eq!(parse_list("(null)\n"), CpuSet::new());
        assert_eq!(parse_list(" 1-2\n"), CpuSet::from([1, 2]));
    }

    #[test]
    fn steal_is_the_eighth_field() {
        let stat =
            "cpu  30 0 20 100 0 0 0 7 0 0\ncpu0 10 0 10 50 0 0 0 2 0 0\ncpu10 1 1 1 1 1 1 1 1 5 0\nintr 1";
        assert_eq!(parse_ticks(stat, 0), Some(Ticks { total: 72, stolen: 2 }));
        assert_eq!(parse_ticks(stat, 10), Some(Ticks { total: 8, stolen: 1 }));
        assert_eq!(parse_ticks(stat, 1), None);
    }
}
