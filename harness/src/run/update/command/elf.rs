//! ELF files that cannot run as a VMM on this machine.

use object::elf::{self, FileHeader32, FileHeader64, Ident, ProgramHeader32};
use object::pod::bytes_of;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{BigEndian, Endianness, LittleEndian, U16, U32, U64};

/// Returns an ELF header for a foreign architecture.
pub fn foreign() -> Vec<u8> {
    let half = |value| U16::new(BigEndian, value);
    let header = FileHeader64 {
        e_ident: ident(elf::ELFCLASS64, elf::ELFDATA2MSB),
        e_type: half(elf::ET_EXEC),
        e_machine: half(elf::EM_S390),
        e_version: U32::new(BigEndian, elf::EV_CURRENT.into()),
        e_entry: U64::default(),
        e_phoff: U64::default(),
        e_shoff: U64::default(),
        e_flags: U32::default(),
        e_ehsize: half(0),
        e_phentsize: half(0),
        e_phnum: half(0),
        e_shentsize: half(0),
        e_shnum: half(0),
        e_shstrndx: half(0),
    };
    bytes_of(&header).to_vec()
}

/// Returns a complete i386 program that exits with status 0. A kernel without 32-bit support does
/// not execute it.
pub fn i386() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const FILE_HEADER: usize = size_of::<FileHeader32<LittleEndian>>();
    const PROGRAM_HEADER: usize = size_of::<ProgramHeader32<LittleEndian>>();
    const HEADERS: usize = FILE_HEADER + PROGRAM_HEADER;
    // mov eax, 1 (exit); xor ebx, ebx; int 0x80
    const CODE: &[u8] = b"\xb8\x01\x00\x00\x00\x31\xdb\xcd\x80";
    let half = |value| U16::new(LittleEndian, value);
    let word = |value| U32::new(LittleEndian, value);
    let size = word((HEADERS + CODE.len()) as u32);
    let header = FileHeader32 {
        e_ident: ident(elf::ELFCLASS32, elf::ELFDATA2LSB),
        e_type: half(elf::ET_EXEC),
        e_machine: half(elf::EM_386),
        e_version: word(elf::EV_CURRENT.into()),
        e_entry: word(BASE + HEADERS as u32),
        e_phoff: word(FILE_HEADER as u32),
        e_shoff: word(0),
        e_flags: word(0),
        e_ehsize: half(FILE_HEADER as u16),
        e_phentsize: half(PROGRAM_HEADER as u16),
        e_phnum: half(1),
        e_shentsize: half(0),
        e_shnum: half(0),
        e_shstrndx: half(0),
    };
    let segment = ProgramHeader32 {
        p_type: word(elf::PT_LOAD),
        p_offset: word(0),
        p_vaddr: word(BASE),
        p_paddr: word(BASE),
        p_filesz: size,
        p_memsz: size,
        p_flags: word(elf::PF_R | elf::PF_X),
        p_align: word(0x1000),
    };
    [bytes_of(&header), bytes_of(&segment), CODE].concat()
}

fn ident(class: u8, data: u8) -> Ident {
    let (magic, version) = (elf::ELFMAG, elf::EV_CURRENT);
    Ident { magic, class, data, version, os_abi: 0, abi_version: 0, padding: [0; 7] }
}

/// Returns the first half of what the kernel maps of a 64-bit `file`: less than half of the file if
/// it has debug information.
pub fn half(file: &[u8]) -> &[u8] {
    let loaded = loaded_bytes(file).filter(|loaded| *loaded <= file.len());
    &file[..loaded.unwrap_or(file.len()) / 2]
}

/// Returns the end of the last PT_LOAD segment.
fn loaded_bytes(file: &[u8]) -> Option<usize> {
    let header = FileHeader64::<Endianness>::parse(file).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, file).ok()?;
    let loaded = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
    let ends: Option<Vec<u64>> = loaded
        .map(|segment| segment.p_offset(endian).checked_add(segment.p_filesz(endian)))
        .collect();
    ends?.into_iter().max().and_then(|end| usize::try_from(end).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_program_does_not_run() {
        let own = std::fs::read(crate::carry::own_binary().unwrap()).unwrap();
        assert!(loaded_bytes(&own).is_some_and(|loaded| loaded <= own.len()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half");
        crate::process::program::write(&path, half(&own)).unwrap();
        let ended = std::process::Command::new(&path).arg("--help").output();
        assert!(ended.is_err() || ended.is_ok_and(|output| !output.status.success()));
    }

    #[test]
    fn i386_program_is_well_formed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i386");
        crate::process::program::write(&path, &i386()).unwrap();
        match std::process::Command::new(&path).status() {
            Ok(status) => assert_eq!(status.code(), Some(0), "{status}"),
            // This kernel does not run 32-bit programs.
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOEXEC), "{e}"),
        }
    }
}
