//! What the kernel tells of this machine. Text is parsed apart from where it is read, so that parsers are tested on
//! captured text; nothing here changes anything, but [`ethtool::run`] where it is told to.

pub(crate) mod cpu;
pub(crate) mod ethtool;
pub(crate) mod gaps;
pub(crate) mod interrupts;
pub(crate) mod link;
pub(crate) mod memory;
pub(crate) mod netdev;
pub(crate) mod netlink;

use std::path::Path;

/// A small file's text without the space around it. `None` where there is none, or it may not be read.
pub(crate) fn text(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A number that stands alone in a file.
pub(crate) fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    text(path)?.parse().ok()
}

/// Major and minor number of a kernel release such as `6.12.9-amd64`.
pub(crate) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|byte: char| !byte.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_have_versions() {
        assert_eq!(kernel_version("6.12.9+bpo-amd64"), Some((6, 12)));
        assert_eq!(kernel_version("5.15.0-1056-aws"), Some((5, 15)));
        assert_eq!(kernel_version("6.1-rc3"), Some((6, 1)));
        assert_eq!(kernel_version("next"), None);
    }
}
