//! Tests of the format of the embedded guests and of the mailbox.

use std::fs;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;

use guest_images::mailbox::{CpuMailbox, Damage, MAILBOX_GPA, Mailbox};
use guest_images::{GUESTS, guest};

#[path = "../compile.rs"]
mod compile;

const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;

#[test]
fn mailbox_layout_is_fixed() {
    assert_eq!((size_of::<Mailbox>(), align_of::<Mailbox>()), (4096, 4096));
    assert_eq!(MAILBOX_GPA % 4096, 0);
    let offsets = [
        offset_of!(Mailbox, magic),
        offset_of!(Mailbox, layout),
        offset_of!(Mailbox, phase),
        offset_of!(Mailbox, name),
        offset_of!(Mailbox, boots),
        offset_of!(Mailbox, cpus_online),
        offset_of!(Mailbox, marker),
        offset_of!(Mailbox, marker_go),
        offset_of!(Mailbox, gap_request),
        offset_of!(Mailbox, reserved0),
        offset_of!(Mailbox, seed),
        offset_of!(Mailbox, ram_start),
        offset_of!(Mailbox, ram_bytes),
        offset_of!(Mailbox, sweeps),
        offset_of!(Mailbox, damage),
        offset_of!(Mailbox, cpus),
        offset_of!(Mailbox, unavailable),
        offset_of!(Mailbox, lateness),
        offset_of!(Mailbox, clock_steps),
    ];
    assert_eq!(
        offsets,
        [0, 8, 12, 16, 32, 36, 40, 44, 48, 52, 56, 64, 72, 80, 128, 320, 832, 960, 968]
    );

    assert_eq!((size_of::<Damage>(), size_of::<CpuMailbox>()), (192, 64));
    let offsets = [
        offset_of!(Damage, state),
        offset_of!(Damage, kind),
        offset_of!(Damage, cpu),
        offset_of!(Damage, vector),
        offset_of!(Damage, error_code),
        offset_of!(Damage, rip),
        offset_of!(Damage, address),
        offset_of!(Damage, expected),
        offset_of!(Damage, found),
        offset_of!(Damage, detail),
        offset_of!(Damage, text),
    ];
    assert_eq!(offsets, [0, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64]);
    let offsets = [
        offset_of!(CpuMailbox, heartbeat),
        offset_of!(CpuMailbox, tsc),
        offset_of!(CpuMailbox, gap),
        offset_of!(CpuMailbox, gap_tsc),
        offset_of!(CpuMailbox, gap_ack),
        offset_of!(CpuMailbox, online),
        offset_of!(CpuMailbox, pages),
    ];
    assert_eq!(offsets, [0, 8, 16, 24, 32, 36, 40]);
}

#[test]
fn guests_are_found_by_name() {
    let names: Vec<_> = GUESTS.iter().map(|guest| guest.name).collect();
    assert_eq!(
        names,
        [
            "audit",
            "clock",
            "dma",
            "faulty",
            "heartbeat",
            "interrupts",
            "kernel",
            "mmio",
            "modes",
            "pattern",
            "port-io",
            "registers",
            "serial",
            "smp",
            "timer",
            "topology",
            "x2apic"
        ]
    );
    for name in names {
        // A name must fit into the mailbox.
        assert!(name.len() < 16, "{name}");
        let guest = guest(name).expect("it is in the table");
        assert!(guest.name == name && guest.summary.ends_with('.'), "{name}: {}", guest.summary);
    }
    assert!(guest("no-such-guest").is_none());
}

/// Reads a little-endian number.
fn number(bytes: &[u8], offset: u64, len: usize) -> u64 {
    let offset = offset as usize;
    bytes[offset..offset + len].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[test]
fn guests_are_static_elf_files_with_a_pvh_entry() {
    for guest in GUESTS {
        let elf = guest.elf;
        assert!(elf.starts_with(b"\x7fELF\x02\x01\x01"), "{}: 64 bits, little-endian", guest.name);
        assert_eq!((number(elf, 16, 2), number(elf, 18, 2)), (2, 62), "EXEC for x86-64");
        let entry = number(elf, 24, 8);
        let headers = (0..number(elf, 56, 2)).map(|i| number(elf, 32, 8) + i * 56);

        let mut pvh_entry = None;
        let mut entry_is_code = false;
        for header in headers {
            let [kind, flags] = [0, 4].map(|at| number(elf, header + at, 4));
            let [offset, address, physical, in_file, in_memory] =
                [8, 16, 24, 32, 40].map(|at| number(elf, header + at, 8));
            match kind {
                PT_LOAD => {
                    assert_eq!(address, physical, "{}", guest.name);
                    assert!(in_file <= in_memory);
                    assert!(
                        address >= 1 << 20 && address + in_memory <= 2 << 20,
                        "{}: {address:#x} + {in_memory:#x}",
                        guest.name
                    );
                    entry_is_code |=
                        flags & 1 != 0 && (address..address + in_file).contains(&entry);
                }
                PT_NOTE => {
                    assert_eq!(in_file, 24);
                    let head = [0, 4, 8].map(|at| number(elf, offset + at, 4));
                    assert_eq!((head, number(elf, offset + 12, 4)), ([4, 8, 18], 0x006e_6558));
                    pvh_entry = Some(number(elf, offset + 16, 8));
                }
                // No dynamic section and no interpreter.
                _ => assert!(![2, 3].contains(&kind), "{}: segment of type {kind}", guest.name),
            }
        }
        assert_eq!(pvh_entry, Some(entry), "{}", guest.name);
        assert!(entry_is_code, "{}: entry {entry:#x}", guest.name);
    }
}

#[test]
fn firmware_images_contain_what_the_elf_files_load() {
    for guest in GUESTS {
        let (elf, bios) = (guest.elf, guest.bios);
        assert!(!bios.is_empty() && bios.len() % (64 << 10) == 0, "{}: {}", guest.name, bios.len());
        let mut end = 0;
        for header in (0..number(elf, 56, 2)).map(|i| number(elf, 32, 8) + i * 56) {
            let [offset, address, bytes] =
                [8, 24, 32].map(|at| number(elf, header + at, 8) as usize);
            if number(elf, header, 4) == PT_LOAD {
                let at = address - (1 << 20);
                assert!(bios[at..at + bytes] == elf[offset..offset + bytes], "{}", guest.name);
                end = end.max(at + bytes);
            }
        }
        // The block at the end has a jump to its start at the reset vector.
        let block = bios.len() - 256;
        assert!(end <= block && bios[end..block].iter().all(|byte| *byte == 0), "{}", guest.name);
        assert!(bios[block..] == bios[0x9f00..0xa000], "{}", guest.name);
        let jump = &bios[bios.len() - 16..];
        let target = match jump[0] {
            0xe9 => 0xf3 + i64::from(number(jump, 1, 2) as i16),
            0xeb => 0xf2 + i64::from(jump[1] as i8),
            other => panic!("{}: {other:#x} at the reset vector", guest.name),
        };
        assert_eq!(target, 0, "{}", guest.name);
        // The instructions before and after that of the destination have the source and the length.
        let moves = bios[block..].windows(15).find(|code| code[5..10] == [0xbf, 0, 0, 0x10, 0]);
        let moves = moves.expect("a destination of 1 MiB");
        let (source, words) = (number(moves, 1, 4), number(moves, 11, 4) as usize);
        assert_eq!(source + bios.len() as u64, 1 << 32, "{}", guest.name);
        assert_eq!(words * 4, end.next_multiple_of(4), "{}", guest.name);
    }
}

#[test]
fn guest_builds_are_reproducible_and_free_of_warnings() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let elsewhere = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests-elsewhere");
    for folder in ["runtime", "guests", "guests/kernel", "guests/registers"] {
        fs::create_dir_all(elsewhere.join(folder)).unwrap();
        let entries = fs::read_dir(here.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        for path in entries.filter(|path| path.is_file()) {
            fs::copy(&path, elsewhere.join(folder).join(path.file_name().unwrap())).unwrap();
        }
    }
    let compiler = compile::Compiler {
        rustc: env!("GUEST_RUSTC").into(),
        linker: option_env!("GUEST_LINKER").map(Into::into),
        deny_warnings: true,
    };
    for guest in GUESTS {
        let elf = elsewhere.join(guest.name);
        compiler.compile(&elsewhere, guest.name, &elf).unwrap_or_else(|what| panic!("{what}"));
        assert!(fs::read(&elf).unwrap() == guest.elf, "{} differs", elf.display());
    }
}

#[test]
fn guests_contain_no_paths_of_the_build_machine() {
    for guest in GUESTS {
        for path in [env!("CARGO_MANIFEST_DIR"), env!("CARGO_TARGET_TMPDIR"), "/rustlib/", "/home/"]
        {
            let holds = |image: &[u8]| image.windows(path.len()).any(|b| b == path.as_bytes());
            assert!(!holds(guest.elf) && !holds(guest.bios), "{}: {path}", guest.name);
        }
    }
}
