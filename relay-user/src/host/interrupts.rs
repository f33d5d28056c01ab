//! Which interrupts an interface has, and which processors serve them.

use std::path::Path;

use super::cpu::{CpuSet, parse_list};
use super::text;

/// A line of `/proc/interrupts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interrupt {
    /// Its number.
    pub(crate) number: u32,
    /// What the driver calls it.
    pub(crate) name: String,
}

/// An interrupt of a receive queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueInterrupt {
    /// The queue.
    pub(crate) queue: u32,
    /// The interrupt's number.
    pub(crate) number: u32,
    /// Processors that may serve it.
    pub(crate) allowed: CpuSet,
    /// Processors that do serve it; what is allowed, where the kernel does not tell.
    pub(crate) serving: CpuSet,
}

/// The numbered lines of `/proc/interrupts`; its counts are passed over.
pub(crate) fn parse(table: &str) -> Vec<Interrupt> {
    let lines = table.lines().skip(1).filter_map(|line| {
        let (number, rest) = line.trim_start().split_once(':')?;
        let name = rest.split_ascii_whitespace().last()?;
        Some(Interrupt { number: number.parse().ok()?, name: name.to_owned() })
    });
    lines.collect()
}

/// The receive queue that an interrupt of an interface serves, by the names that drivers give: `eth0-TxRx-3`,
/// `i40e-eth0-TxRx-3`, `eth0-rx-3`, `mlx5_comp3@pci:…`, `virtio2-input.3`.
pub(crate) fn receive_queue(name: &str) -> Option<u32> {
    let name = name.split('@').next()?;
    let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (kind, queue) = name.split_at(digits);
    let kind = kind.to_ascii_lowercase();
    let sends_only = kind.contains("output") || (kind.contains("tx") && !kind.contains("rx"));
    let receives = ["rx", "input", "comp", "queue", "fp-", "ch-"].iter().any(|word| kind.contains(word));
    if sends_only || !receives { None } else { queue.parse().ok() }
}

/// The interrupts of `interface`'s receive queues. `device` is its directory in /sys, from where it is a device.
/// Empty where it has none or they cannot be told apart.
pub(crate) fn of_interface(interface: &str, device: Option<&Path>) -> Vec<QueueInterrupt> {
    let listed: Vec<u32> = device
        .and_then(|device| std::fs::read_dir(device.join("msi_irqs")).ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // A virtio device has its interrupts at the PCI device behind it, named after itself.
    let device_name = device.and_then(|device| Some(device.file_name()?.to_str()?.to_owned()));
    let belongs = |interrupt: &Interrupt| {
        listed.contains(&interrupt.number)
            || has_word(&interrupt.name, interface)
            || device_name.as_ref().is_some_and(|device| has_word(&interrupt.name, device))
    };
    let table = text("/proc/interrupts").unwrap_or_default();
    let mut interrupts: Vec<QueueInterrupt> = parse(&table)
        .into_iter()
        .filter(belongs)
        .filter_map(|interrupt| {
            let place = format!("/proc/irq/{}", interrupt.number);
            let allowed = parse_list(&text(format!("{place}/smp_affinity_list"))?);
            let serving = text(format!("{place}/effective_affinity_list")).map(|list| parse_list(&list));
            let serving = serving.filter(|cpus| !cpus.is_empty()).unwrap_or_else(|| allowed.clone());
            let queue = receive_queue(&interrupt.name)?;
            Some(QueueInterrupt { queue, number: interrupt.number, allowed, serving })
        })
        .collect();
    interrupts.sort_by_key(|interrupt| interrupt.queue);
    interrupts
}

/// Whether `word` stands in `name` between ends or separators: `eth1` is not in `eth10-rx-0`.
fn has_word(name: &str, word: &str) -> bool {
    name.match_indices(word).any(|(at, _)| {
        let separates = |byte: Option<u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric());
        let before = at.checked_sub(1).and_then(|at| name.as_bytes().get(at)).copied();
        separates(before) && separates(name.as_bytes().get(at + word.len()).copied())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "           CPU0       CPU1       \n \
         24:          1          0  IO-APIC   5-edge      ACPI:Ged\n \
         38:          0       4434 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n \
         39:       2723          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0\n\
         NMI:          0          0   Non-maskable interrupts\n\
         ERR:          0\n";

    #[test]
    fn numbered_lines_are_read() {
        let names: Vec<(u32, String)> =
            parse(TABLE).into_iter().map(|interrupt| (interrupt.number, interrupt.name)).collect();
        let expected = [(24, "ACPI:Ged"), (38, "virtio2-input.0"), (39, "virtio2-output.0")];
        assert_eq!(names, expected.map(|(number, name)| (number, name.to_owned())));
    }

    #[test]
    fn drivers_name_receive_queues_in_their_ways() {
        for (name, queue) in [
            ("virtio2-input.0", Some(0)),
            ("virtio2-output.0", None),
            ("virtio2-config", None),
            ("eth0-TxRx-11", Some(11)),
            ("i40e-enp1s0f0-TxRx-3", Some(3)),
            ("eth0-rx-2", Some(2)),
            ("eth0-tx-2", None),
            ("mlx5_comp7@pci:0000:81:00.0", Some(7)),
            ("mlx5_async0@pci:0000:81:00.0", None),
        ] {
            assert_eq!(receive_queue(name), queue, "{name}");
        }
    }

    #[test]
    fn names_are_compared_as_words() {
        assert!(has_word("i40e-eth1-TxRx-0", "eth1"));
        assert!(has_word("eth1", "eth1"));
        assert!(!has_word("eth10-rx-0", "eth1"));
        assert!(!has_word("veth1-rx-0", "eth1"));
    }
}
