use linux_loader::elf::PT_NOTE;

use super::*;
use crate::memory::layout::{CONVENTIONAL_END, HIGH_RAM_START, LOW_RAM_END};
use crate::memory::{MemoryConfig, PageKind, RamBlock};

fn given(cmdline: &str) -> Given<'_> {
    Given { cmdline, cpus: 1, pci: false }
}

fn ram(size: u64) -> RamBlock {
    RamBlock::create(MemoryConfig { size, share: true, pages: PageKind::Small }).unwrap()
}

#[test]
fn rejects_elf_file_without_segments() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [MAGIC.as_slice(), &[0; 200]].concat()).unwrap();
    let image = BootImage::open(file.path(), None).unwrap();
    let error = load(ram(8 << 20).memory(), &image, given("")).unwrap_err();
    assert!(matches!(error, BootError::Elf(_)), "{error}");
}

/// An ELF file with the PVH note and segments of `(address, bytes in the file, in memory)`, the
/// bytes being all `0xaa`.
pub(crate) fn kernel(segments: &[(u64, u64, u64)]) -> BootImage {
    const HEADERS: u64 = 0x1000;
    let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x10\0";
    let mut header = Elf64_Ehdr {
        e_phoff: size_of::<Elf64_Ehdr>() as u64,
        e_phentsize: size_of::<Elf64_Phdr>() as u16,
        e_phnum: segments.len() as u16 + 1,
        ..Default::default()
    };
    header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut file = header.as_slice().to_vec();
    let phdr = |p_type, p_offset, (p_paddr, p_filesz, p_memsz)| Elf64_Phdr {
        p_type,
        p_offset,
        p_paddr,
        p_filesz,
        p_memsz,
        p_align: 4,
        ..Default::default()
    };
    let length = note.len() as u64;
    file.extend_from_slice(phdr(PT_NOTE, HEADERS, (0, length, length)).as_slice());
    for &segment in segments {
        file.extend_from_slice(phdr(PT_LOAD, HEADERS + length, segment).as_slice());
    }
    file.resize(HEADERS as usize, 0);
    file.extend_from_slice(note);
    let most = segments.iter().map(|segment| segment.1).max().unwrap_or(0);
    file.resize(file.len() + most as usize, 0xaa);
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(named.path(), file).unwrap();
    BootImage::open(named.path(), None).unwrap()
}

#[test]
fn memory_that_is_not_in_the_file_is_cleared() {
    let ram = ram(8 << 20);
    let dirty = vec![0xff_u8; 8 << 20];
    ram.memory().write_slice(&dirty, GuestAddress(0)).unwrap();
    let image = kernel(&[
        (0x10_0000, 0x1000, 0x1800),
        (0x20_0000, 0, 0x3000),
        (0x3_0000, 0x10, 0x20),
        (0x40_0000, 0x10, 0x10),
    ]);
    load(ram.memory(), &image, given("")).unwrap();
    let bytes = |start, length| {
        let mut bytes = vec![0_u8; length];
        ram.memory().read_slice(&mut bytes, GuestAddress(start)).unwrap();
        bytes.dedup();
        bytes
    };
    assert_eq!([bytes(0x10_0000, 0x1000), bytes(0x10_1000, 0x800)], [[0xaa], [0]]);
    assert_eq!([bytes(0x10_1800, 0x100), bytes(0x20_0000, 0x3000)], [[0xff], [0]]);
    assert_eq!([bytes(0x3_0000, 0x10), bytes(0x3_0010, 0x10)], [[0xaa], [0]]);
    assert_eq!([bytes(0x40_0000, 0x10), bytes(0x40_0010, 0x10)], [[0xaa], [0xff]]);
}

#[test]
fn initrd_does_not_overlap_the_kernels_bss() {
    let ram = ram(8 << 20);
    let initrd = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(initrd.path(), [1; 4096]).unwrap();
    let adopt = |image: BootImage| {
        let initrd = File::open(initrd.path()).unwrap();
        BootImage::adopt(image.kernel().try_clone().unwrap().into(), Some(initrd.into()))
    };
    let text = (0x10_0000, 0x1000, 0x10_0000);
    let fits = adopt(kernel(&[text, (0x20_0000, 0, 0x5f_f000)]));
    load(ram.memory(), &fits, given("")).unwrap();
    let not = adopt(kernel(&[text, (0x20_0000, 0, 0x5f_f001)]));
    assert!(matches!(load(ram.memory(), &not, given("")), Err(BootError::Initrd { .. })));
}

#[test]
fn rejects_segment_outside_of_ram() {
    let ram = ram(8 << 20);
    for segment in [(0x10_0000, 0, 8 << 20), (u64::MAX, 0, 2), (0x10_0000, 0, u64::MAX)] {
        let error = load(ram.memory(), &kernel(&[segment]), given("")).unwrap_err();
        assert!(matches!(error, BootError::Segment { .. }), "{error}");
    }
}

#[test]
fn rejects_segment_in_the_hole_or_longer_in_the_file() {
    let low_end = LOW_RAM_END;
    let ram = ram(4 << 30);
    for segment in [
        (low_end - 0x1000, 0x10, 0x1001),
        (low_end - 0x1000, 0x10, (1 << 30) + 0x2000),
        (low_end, 0, 0x1000),
        (HIGH_RAM_START - 1, 0, 2),
        (low_end - 0x1000, 0x1001, 0x1000),
    ] {
        let error = load(ram.memory(), &kernel(&[segment]), given("")).unwrap_err();
        assert!(matches!(error, BootError::Segment { .. }), "{error}");
    }
}

/// Asserts that the whole kernel is in place, and that the registers lead to its boot structures.
fn assert_starts(ram: &RamBlock, segments: &[(u64, u64, u64)], cmdline: &str) {
    let memory = ram.memory();
    let entry = load(memory, &kernel(segments), given(cmdline)).unwrap();
    for &(start, in_file, _) in segments {
        let mut bytes = vec![0; in_file as usize];
        memory.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0xaa), "the segment at {start:#x}");
    }
    let info: hvm_start_info = memory.read_obj(GuestAddress(entry.regs().rbx)).unwrap();
    assert_eq!((info.magic, info.memmap_entries), (START_INFO_MAGIC, 3));
    let rsdp: [u8; 8] = memory.read_obj(GuestAddress(info.rsdp_paddr)).unwrap();
    assert_eq!(&rsdp, b"RSD PTR ");
    let mut line = vec![1; cmdline.len() + 1];
    memory.read_slice(&mut line, GuestAddress(info.cmdline_paddr)).unwrap();
    assert_eq!(line, [cmdline.as_bytes(), b"\0"].concat());
    let ram: hvm_memmap_table_entry = memory.read_obj(GuestAddress(info.memmap_paddr)).unwrap();
    assert_eq!((ram.addr, ram.size), (0, CONVENTIONAL_END));
}

#[test]
fn boot_structures_do_not_overwrite_the_kernel() {
    let ram = ram(8 << 20);
    let line = "x".repeat(0x2000);
    assert_starts(&ram, &[(0x10_0000, 0x1000, 0x1000)], &line);
    assert_starts(&ram, &[(0x6000, 0x300, 0x300)], &line);
    assert_starts(&ram, &[(0x1_1fff, 1, 1)], &line);
    assert_starts(&ram, &[(0, 0x9_f000, 0x9_f000), (0x10_0000, 0x10, 0x10)], &line);
    let all = [(0, 0xa_0000, 0xa_0000), (0x10_0000, 0x70_0000, 0x70_0000)];
    let error = load(ram.memory(), &kernel(&all), given(&line)).unwrap_err();
    insta::assert_snapshot!(error, @"cannot place the PVH start info of 4096 bytes in guest RAM: the kernel leaves no room for it below 0x800000");
}

#[test]
fn a_segment_above_4_gib_leaves_room_for_an_initrd() {
    let ram = ram(4 << 30);
    let initrd = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(initrd.path(), [1; 4096]).unwrap();
    let image = kernel(&[(HIGH_RAM_START, 0x10, 0x10)]);
    let kernel = image.kernel().try_clone().unwrap().into();
    let initrd = File::open(initrd.path()).unwrap();
    load(ram.memory(), &BootImage::adopt(kernel, Some(initrd.into())), given("")).unwrap();
}
