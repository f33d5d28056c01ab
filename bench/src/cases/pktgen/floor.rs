//! The cheapest XDP program there is: `return XDP_DROP`. Two instructions need no compiler; the object file around
//! them is written here, as much of one as the loader asks for.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;

use super::wiring::FLOOR;

const NAME: &str = "floor";

/// linux/bpf.h: BPF_ALU64 | BPF_MOV | BPF_K on r0 with XDP_DROP, then BPF_JMP | BPF_EXIT.
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Attaches it to the floor's interface of the calling thread's namespace, natively; it goes with what is returned.
pub(super) fn attach() -> Result<Ebpf> {
    let mut ebpf = load()?;
    let program = program(&mut ebpf)?;
    program.attach(FLOOR, XdpMode::Driver).with_context(|| format!("the bare drop program on {FLOOR}"))?;
    Ok(ebpf)
}

fn load() -> Result<Ebpf> {
    let mut ebpf = Ebpf::load(&Aligned::new().0).context("the bare drop program's object")?;
    program(&mut ebpf)?.load().context("the bare drop program")?;
    Ok(ebpf)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    Ok(ebpf.program_mut(NAME).context("the bare drop program is not in its object")?.try_into()?)
}

// elf.h
const ET_REL: u16 = 1;
const EM_BPF: u16 = 247;
const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHF_ALLOC: u64 = 2;
const SHF_EXECINSTR: u64 = 4;
const STB_GLOBAL_STT_FUNC: u8 = 0x12;

/// Bytes of the ELF header, of a section's header and of a symbol.
const HEADER: usize = 64;
const SECTION: usize = 64;
const SYMBOL: usize = 24;
/// Names of sections and symbols; each is looked up by where it starts.
const NAMES: &[u8; 37] = b"\0xdp\0license\0.symtab\0.strtab\0floor\0\0\0";
const AT_XDP: u32 = 1;
const AT_LICENSE: u32 = 5;
const AT_SYMTAB: u32 = 13;
const AT_STRTAB: u32 = 21;
const AT_FLOOR: u32 = 29;
const LICENSE: &[u8; 16] = b"Dual MIT/Apache\0";
const SECTIONS: u16 = 5;
const LEN: usize =
    HEADER + CODE.len() + LICENSE.len() + 2 * SYMBOL + NAMES.len() + 3 + SECTION * SECTIONS as usize;

/// The loader reads the headers in place.
#[repr(align(8))]
struct Aligned([u8; LEN]);

impl Aligned {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(LEN);
        let code = HEADER;
        let license = code + CODE.len();
        let symbols = license + LICENSE.len();
        let names = symbols + 2 * SYMBOL;
        let sections = (names + NAMES.len()).next_multiple_of(8);
        header(&mut bytes, sections);
        bytes.extend(CODE);
        bytes.extend(LICENSE);
        bytes.extend([0; SYMBOL]);
        bytes.extend(AT_FLOOR.to_le_bytes());
        bytes.extend([STB_GLOBAL_STT_FUNC, 0, 1, 0]);
        bytes.extend([0; 8]);
        bytes.extend((CODE.len() as u64).to_le_bytes());
        bytes.extend(NAMES);
        bytes.resize(sections, 0);
        bytes.extend([0; SECTION]);
        section(&mut bytes, [AT_XDP, SHT_PROGBITS], SHF_ALLOC | SHF_EXECINSTR, code, CODE.len(), [0, 0], 0);
        section(&mut bytes, [AT_LICENSE, SHT_PROGBITS], SHF_ALLOC, license, LICENSE.len(), [0, 0], 0);
        // Names in section 4; the first symbol that is not local is number 1.
        section(&mut bytes, [AT_SYMTAB, SHT_SYMTAB], 0, symbols, 2 * SYMBOL, [4, 1], SYMBOL);
        section(&mut bytes, [AT_STRTAB, SHT_STRTAB], 0, names, NAMES.len(), [0, 0], 0);
        let mut out = [0; LEN];
        out.copy_from_slice(&bytes);
        Self(out)
    }
}

fn header(bytes: &mut Vec<u8>, sections: usize) {
    // 64 bit, little endian, version 1.
    bytes.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    bytes.extend(ET_REL.to_le_bytes());
    bytes.extend(EM_BPF.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    // No entry point, no program headers.
    bytes.extend([0; 16]);
    bytes.extend((sections as u64).to_le_bytes());
    bytes.extend([0; 4]);
    for value in [HEADER, 0, 0, SECTION] {
        bytes.extend((value as u64).to_le_bytes()[..2].iter());
    }
    bytes.extend(SECTIONS.to_le_bytes());
    bytes.extend((SECTIONS - 1).to_le_bytes());
}

fn section(
    bytes: &mut Vec<u8>,
    [name, kind]: [u32; 2],
    flags: u64,
    offset: usize,
    size: usize,
    [link, info]: [u32; 2],
    entry: usize,
) {
    bytes.extend(name.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    for value in [flags, 0, offset as u64, size as u64] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(link.to_le_bytes());
    bytes.extend(info.to_le_bytes());
    for value in [8, entry as u64] {
        bytes.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use aya::programs::{TestRun as _, TestRunOptions};

    use super::*;

    #[test]
    fn the_kernel_takes_it_and_it_drops() -> Result<()> {
        if !relay_tests::privilege::root_or_skip("the_kernel_takes_it_and_it_drops") {
            return Ok(());
        }
        let mut ebpf = load()?;
        let options = TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::new() };
        // linux/bpf.h, XDP_DROP.
        assert_eq!(program(&mut ebpf)?.test_run(options)?.return_value, 1);
        Ok(())
    }

    #[test]
    fn the_names_are_where_the_headers_point() {
        for (at, name) in [
            (AT_XDP, "xdp"),
            (AT_LICENSE, "license"),
            (AT_SYMTAB, ".symtab"),
            (AT_STRTAB, ".strtab"),
            (AT_FLOOR, NAME),
        ] {
            let rest = &NAMES[at as usize..];
            assert_eq!(&rest[..name.len()], name.as_bytes());
            assert_eq!(rest[name.len()], 0);
        }
    }
}
