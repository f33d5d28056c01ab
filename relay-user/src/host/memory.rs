//! Huge pages and limits on memory.

use std::path::Path;

use super::{number, text};

/// Bytes of the huge pages that frames are put in.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Huge pages of 2 MiB that the kernel keeps ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// Kept.
    pub(crate) total: u64,
    /// In use by nobody and promised to nobody.
    pub(crate) free: u64,
}

/// `None` on a machine without pages of this size.
pub(crate) fn huge_pages() -> Option<HugePages> {
    let read = |name: &str| number::<u64>(Path::new(POOL).join(name));
    let promised = read("resv_hugepages").unwrap_or(0);
    Some(HugePages { total: read("nr_hugepages")?, free: read("free_hugepages")?.saturating_sub(promised) })
}

/// Huge pages that `bytes` of frames take.
pub(crate) fn pages_for(bytes: u64) -> u64 {
    bytes.div_ceil(HUGE_PAGE)
}

/// When the kernel makes huge pages by itself: `always`, `madvise` or `never`.
pub(crate) fn transparent() -> Option<String> {
    parse_choice(&text("/sys/kernel/mm/transparent_hugepage/enabled")?)
}

/// The word in brackets of `always [madvise] never`.
fn parse_choice(choices: &str) -> Option<String> {
    let (_, rest) = choices.split_once('[')?;
    rest.split_once(']').map(|(choice, _)| choice.to_owned())
}

/// Bytes of the mapping with `address` in it that are in transparent huge pages. `None` where the kernel does not tell.
pub(crate) fn transparent_bytes(address: usize) -> Option<u64> {
    parse_transparent(&text("/proc/self/smaps")?, address)
}

/// The same, from the text of `/proc/PID/smaps`.
fn parse_transparent(maps: &str, address: usize) -> Option<u64> {
    let mut inside = false;
    for line in maps.lines() {
        let first = line.split(' ').next()?;
        if let Some((start, end)) = first.split_once('-') {
            let number = |digits| usize::from_str_radix(digits, 16);
            if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                inside = (start..end).contains(&address);
            }
        } else if inside && let Some(rest) = line.strip_prefix("AnonHugePages:") {
            return rest.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparent_pages_are_counted_by_mapping() {
        let maps = "7f0000000000-7f0000800000 rw-p 00000000 00:00 0 \nRss: 8192 kB\nAnonHugePages:      4096 kB\n\
            7f0000800000-7f0000801000 rw-p 00000000 00:00 0 [heap-x]\nAnonHugePages:         0 kB\n";
        assert_eq!(parse_transparent(maps, 0x7f00_0000_1000), Some(4 << 20));
        assert_eq!(parse_transparent(maps, 0x7f00_0080_0000), Some(0));
        assert_eq!(parse_transparent(maps, 0x1000), None);
    }

    #[test]
    fn the_chosen_word_is_in_brackets() {
        assert_eq!(parse_choice("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(parse_choice("none"), None);
    }

    #[test]
    fn a_page_that_is_begun_counts() {
        assert_eq!((pages_for(1), pages_for(HUGE_PAGE), pages_for(HUGE_PAGE + 1)), (1, 1, 2));
    }
}
