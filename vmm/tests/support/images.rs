//! Small guests as boot images.

/// Guest-physical address at which the guests are loaded.
const BASE: u32 = 1 << 20;
const EHDR: u16 = 64;
const PHDR: u16 = 56;
/// The ELF note up to its descriptor: `XEN_ELFNOTE_PHYS32_ENTRY`, whose four bytes are the entry.
const NOTE: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0";

/// Returns a guest that echoes what the serial port receives.
pub fn echo() -> Vec<u8> {
    elf(
        &[
            0x66, 0xba, 0xfd, 0x03, //         mov dx, 0x3fd
            0xec, //                     next: in al, dx
            0xa8, 0x01, //                     test al, 1
            0x74, 0xfb, //                     jz next
            0xb2, 0xf8, //                     mov dl, 0xf8
            0xec, //                           in al, dx
            0xee, //                           out dx, al
            0xb2, 0xfd, //                     mov dl, 0xfd
            0xeb, 0xf3, //                     jmp next
        ],
        true,
    )
}

/// Returns a guest that sends the alphabet, over and over.
pub fn alphabet() -> Vec<u8> {
    elf(
        &[
            0x66,
            0xba,
            0xf8,
            0x03, //         mov dx, 0x3f8
            0xb0,
            b'A', //              first: mov al, 'A'
            0xee, //                     next: out dx, al
            0x40, //                           inc eax
            0x3c,
            b'Z' + 1, //                 cmp al, 'Z' + 1
            0x75,
            0xfa, //                     jne next
            0xeb,
            0xf6, //                     jmp first
        ],
        true,
    )
}

/// Returns a guest that powers the machine off when the power button is pressed.
pub fn powers_off() -> Vec<u8> {
    elf(
        &[
            0x66, 0xba, 0x02, 0x06, //         mov dx, 0x602
            0x66, 0xb8, 0x00, 0x01, //         mov ax, 0x100
            0x66, 0xef, //                     out dx, ax
            0xb2, 0x00, //                     mov dl, 0
            0x66, 0xed, //               wait: in ax, dx
            0xf6, 0xc4, 0x01, //               test ah, 1
            0x74, 0xf9, //                     jz wait
            0xb2, 0x04, //                     mov dl, 4
            0x66, 0xb8, 0x00, 0x34, //         mov ax, 0x3400
            0x66, 0xef, //                     out dx, ax
            0xf4, //                           hlt
        ],
        true,
    )
}

/// Returns a bzImage whose guest sends its command line, with the NUL at its end, and then echoes
/// what the serial port receives.
pub fn bzimage() -> Vec<u8> {
    const SECTOR: usize = 512;
    let mut file = vec![0; 2 * SECTOR];
    // The setup header (Linux `Documentation/arch/x86/boot.rst`).
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); //                                  one sector of setup
    put(0x1f4, &0x40_u32.to_le_bytes()); //               1 KiB of kernel
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]); //                                  is loaded high
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); //        initrd_addr_max
    put(0x236, &[1]); //                                  has a 64-bit entry
    put(0x238, &255_u32.to_le_bytes()); //                cmdline_size
    put(0x258, &u64::from(BASE).to_le_bytes()); //        pref_address
    put(0x260, &0x1000_u32.to_le_bytes()); //             init_size
    file.resize(3 * SECTOR, 0xf4);
    file.extend([
        0x66, 0xba, 0xf8, 0x03, //             mov dx, 0x3f8
        0x8b, 0xb6, 0x28, 0x02, 0x00, 0x00, // mov esi, [rsi + 0x228]
        0xac, //                         next: lodsb
        0xee, //                               out dx, al
        0x84, 0xc0, //                         test al, al
        0x75, 0xfa, //                         jnz next
        0xb2, 0xfd, //                         mov dl, 0xfd
        0xec, //                         wait: in al, dx
        0xa8, 0x01, //                         test al, 1
        0x74, 0xfb, //                         jz wait
        0xb2, 0xf8, //                         mov dl, 0xf8
        0xec, //                               in al, dx
        0xee, //                               out dx, al
        0xb2, 0xfd, //                         mov dl, 0xfd
        0xeb, 0xf3, //                         jmp wait
    ]);
    file.resize(4 * SECTOR, 0xf4);
    file
}

/// Returns an ELF file without the PVH note that a guest needs.
pub fn without_note() -> Vec<u8> {
    elf(&[0xf4], false)
}

/// Wraps `code`, 32-bit and position-independent, in an ELF file, with a PVH note if `note` is set.
fn elf(code: &[u8], note: bool) -> Vec<u8> {
    const LOAD: u32 = 1;
    const NOTES: u32 = 4;
    let base = u64::from(BASE);
    let note_segment = [NOTE, &BASE.to_le_bytes()].concat();
    let segments = [(LOAD, code), (NOTES, &note_segment)];
    let segments = &segments[..if note { 2 } else { 1 }];
    let headers = EHDR + PHDR * segments.len() as u16;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2_u16, 62].map(u16::to_le_bytes).as_flattened());
    file.extend(1_u32.to_le_bytes());
    file.extend([base, u64::from(EHDR), 0].map(u64::to_le_bytes).as_flattened());
    file.extend(0_u32.to_le_bytes());
    let sizes = [EHDR, PHDR, segments.len() as u16, 0, 0, 0];
    file.extend(sizes.map(u16::to_le_bytes).as_flattened());
    let mut offset = u64::from(headers);
    for (kind, content) in segments {
        let length = content.len() as u64;
        file.extend([*kind, 5].map(u32::to_le_bytes).as_flattened());
        file.extend([offset, base, base, length, length, 4].map(u64::to_le_bytes).as_flattened());
        offset += length;
    }
    file.extend(segments.iter().flat_map(|(_, content)| *content));
    file
}
