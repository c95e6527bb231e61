use std::io::Write;

use super::*;
use crate::memory::{MemoryConfig, PageKind, RamBlock};
use vm_memory::Bytes;

const PREFERRED: u64 = 16 << 20;
const INIT_SIZE: u32 = 0x20_0000;
/// The kernel proper: recognizable bytes, 3 sectors of 512.
const PAYLOAD: [u8; 0x600] = [0xaa; 0x600];

fn given(cmdline: &str) -> Given<'_> {
    Given { cmdline, cpus: 1, pci: false }
}

fn ram(size: u64) -> RamBlock {
    RamBlock::create(MemoryConfig { size, share: true, pages: PageKind::Small }).unwrap()
}

/// A bzImage with a header that `change` has changed, and code where the header ends.
fn bzimage(change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
    let mut header = setup_header {
        setup_sects: 1,
        syssize: PAYLOAD.len() as u32 / 16,
        boot_flag: 0xaa55,
        // A short jump by 0x62: the header ends at 0x264, before `kernel_info_offset`.
        jump: 0x62eb,
        header: MAGIC,
        version: 0x20f,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: XLF_KERNEL_64,
        cmdline_size: 2047,
        pref_address: PREFERRED,
        init_size: INIT_SIZE,
        kernel_info_offset: 0xeeee_eeee,
        ..Default::default()
    };
    change(&mut header);
    let mut file = vec![0; HEADER as usize];
    file.extend_from_slice(header.as_slice());
    file.resize(2 * SECTOR as usize, 0x90);
    file.extend_from_slice(&PAYLOAD);
    file
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn image(kernel: &[u8], initrd: Option<&[u8]>) -> BootImage {
    BootImage::adopt(file(kernel).into(), initrd.map(|bytes| file(bytes).into()))
}

fn error(size: u64, kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> String {
    let image = image(kernel, initrd);
    super::super::load(ram(size).memory(), &image, given(cmdline)).unwrap_err().to_string()
}

#[test]
fn zero_page_describes_kernel_command_line_initrd_and_ram() {
    let ram = ram(4 << 30);
    let memory = ram.memory();
    memory.write_slice(&[0xff; 0x1_0000], GuestAddress(0)).unwrap();
    let entry =
        load(memory, &image(&bzimage(|_| ()), Some(&[0xbb; 5000])), given("console=x")).unwrap();
    let regs = entry.regs();
    assert_eq!((regs.rip, regs.rflags), (PREFERRED + 0x200, 2));
    let mut page = [0; 4096];
    memory.read_slice(&mut page, GuestAddress(regs.rsi)).unwrap();
    let bytes = |at, length| {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    let word = |at| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    assert_eq!(bytes(u64::from(word(0x228)), 10), b"console=x\0");
    assert_eq!(bytes(u64::from(word(0x218)), word(0x21c) as usize), [0xbb; 5000]);
    assert_eq!(bytes(PREFERRED, PAYLOAD.len()), PAYLOAD);
    let lines: Vec<_> = (page.chunks_exact(8).enumerate())
        .filter(|(_, chunk)| **chunk != [0; 8])
        .map(|(n, chunk)| format!("{:03x}: {chunk:02x?}", n * 8))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn initrd_and_tables_stay_clear_of_the_kernel_while_it_unpacks_itself() {
    let ram = ram(20 << 20);
    let kernel = bzimage(|header| header.init_size = (4 << 20) - 0x1000);
    let entry = load(ram.memory(), &image(&kernel, Some(&[1; 4096])), given("")).unwrap();
    let at: u32 = ram.memory().read_obj(GuestAddress(entry.zero_page + 0x218)).unwrap();
    assert_eq!(u64::from(at), (20 << 20) - 0x1000);
    let kernel = bzimage(|header| (header.pref_address, header.init_size) = (0x10_0000, 0x10_0000));
    let entry = load(ram.memory(), &image(&kernel, Some(&[1; 4096])), given("")).unwrap();
    assert_eq!(entry.regs().rip, 0x10_0200);
    assert!(entry.zero_page + PAGE + TABLES_SIZE <= 0x10_0000, "{entry:?}");
}

#[test]
fn initrd_is_placed_below_the_kernels_limit() {
    let ram = ram(64 << 20);
    let kernel = bzimage(|header| header.initrd_addr_max = 0x1ff_ffff);
    let entry = load(ram.memory(), &image(&kernel, Some(&[1; 4096])), given("")).unwrap();
    let at: u32 = ram.memory().read_obj(GuestAddress(entry.zero_page + 0x218)).unwrap();
    assert_eq!(at, 0x1ff_f000);
}

#[test]
fn setup_sectors_of_zero_are_four() {
    let header = setup_header { setup_sects: 0, ..Default::default() };
    assert_eq!(setup_bytes(&header), 5 * SECTOR);
}

#[test]
fn what_cannot_boot_is_named() {
    const RAM: u64 = 32 << 20;
    let good = bzimage(|_| ());
    let low_limit = bzimage(|header| header.initrd_addr_max = 0xff_ffff);
    let shorter_line = bzimage(|header| header.cmdline_size = 5);
    let zimage = bzimage(|header| header.loadflags = 0);
    let rows = [
        error(RAM, b"#!/bin/sh\n", None, ""),
        error(RAM, &[0; 0x1000], None, ""),
        error(RAM, &bzimage(|header| header.version = 0x20b), None, ""),
        error(RAM, &bzimage(|header| header.xloadflags = 0), None, ""),
        error(RAM, &zimage, None, ""),
        error(RAM, &good[..good.len() - 1], None, ""),
        error(16 << 20, &good, None, ""),
        error(RAM, &bzimage(|header| header.pref_address = u64::MAX), None, ""),
        error(RAM, &low_limit, Some(&[0; 16 << 20]), ""),
        error(RAM, &good, Some(&[0; 16 << 20]), ""),
        error(RAM, &shorter_line, None, "quiet!"),
        error(RAM, &good, None, "a\0b"),
    ];
    insta::assert_snapshot!(rows.join("\n"));
    load(ram(RAM).memory(), &image(&shorter_line, None), given("quiet")).unwrap();
}
