//! As much of ELF64 (little-endian) as comparing two objects takes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Sections that hold names only. Names carry hashes that differ between checkouts of the same sources.
const NAMES: [&str; 2] = [".symtab", ".strtab"];

/// The names of the sections that are not the same, byte for byte, in both objects.
pub(super) fn differing_sections(left: &[u8], right: &[u8]) -> Result<Vec<String>> {
    let (left, right) = (sections(left)?, sections(right)?);
    let mut names: Vec<_> = left.keys().chain(right.keys()).collect();
    names.sort();
    names.dedup();
    let differing = names.into_iter().filter(|name| !NAMES.contains(&name.as_str()));
    Ok(differing.filter(|name| left.get(*name) != right.get(*name)).cloned().collect())
}

/// Sections by name. Offsets are the gABI's: Elf64_Ehdr and Elf64_Shdr.
fn sections(object: &[u8]) -> Result<BTreeMap<String, &[u8]>> {
    ensure!(object.get(..6) == Some(&[0x7f, b'E', b'L', b'F', 2, 1]), "not a little-endian ELF64 object");
    let table = word::<8>(object, 0x28)?;
    let entry_len = word::<2>(object, 0x3a)?;
    let count = word::<2>(object, 0x3c)?;
    let names = word::<2>(object, 0x3e)?;
    let header =
        |index: usize| index.checked_mul(entry_len).and_then(|at| at.checked_add(table)).context("overflow");
    // The table stands last, and nothing below reads its last header to the end.
    ensure!(header(count)? <= object.len(), "the object is cut off");
    let contents = |index: usize| -> Result<&[u8]> {
        let at = header(index)?;
        let (offset, len) = (word::<8>(object, at + 0x18)?, word::<8>(object, at + 0x20)?);
        let bytes = offset.checked_add(len).and_then(|end| object.get(offset..end));
        bytes.with_context(|| format!("section {index} lies outside the object"))
    };
    let names = contents(names)?;
    (1..count)
        .map(|index| {
            let name = names.get(word::<4>(object, header(index)?)?..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok((String::from_utf8_lossy(name).into_owned(), contents(index)?))
        })
        .collect()
}

fn word<const N: usize>(object: &[u8], at: usize) -> Result<usize> {
    let bytes = object.get(at..).and_then(<[u8]>::first_chunk::<N>).context("the object is cut off")?;
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(bytes);
    usize::try_from(u64::from_le_bytes(wide)).context("an offset is too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> Vec<u8> {
        let root = crate::tools::workspace();
        super::super::OBJECTS[0].committed(root).expect("object")
    }

    #[test]
    fn the_object_has_its_program_maps_and_licence() {
        let object = committed();
        let sections = sections(&object).expect("ELF");
        assert_eq!(sections["license"], b"Dual MIT/GPL\0");
        assert!(sections["xdp"].len() > 8 && sections["xdp"].len().is_multiple_of(8));
        assert!(!sections["maps"].is_empty());
    }

    #[test]
    fn one_changed_byte_of_code_is_a_difference() {
        let object = committed();
        assert!(differing_sections(&object, &object).expect("ELF").is_empty());
        let program = sections(&object).expect("ELF")["xdp"].as_ptr() as usize - object.as_ptr() as usize;
        let mut changed = object.clone();
        changed[program + 8] ^= 1;
        assert_eq!(differing_sections(&object, &changed).expect("ELF"), ["xdp"]);
    }

    #[test]
    fn an_object_cut_off_anywhere_is_refused() {
        let object = committed();
        for len in (0..object.len()).step_by(97) {
            assert!(sections(&object[..len]).is_err(), "cut to {len}");
        }
    }
}
