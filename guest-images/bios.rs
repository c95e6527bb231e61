//! Converts a guest to a firmware image, for VMMs that start a guest at the reset vector
//! (`qemu -bios`).
//!
//! The image contains what the ELF file loads from 1 MiB on, padded to a multiple of 64 KiB. It
//! ends with the block at [`RESET`], which starts in real mode and copies the image to 1 MiB.

use std::ops::Range;

/// The address at which the loaded part begins.
const BASE: usize = 0x10_0000;
/// The block that the image ends with; the linker script pins its address.
const RESET: Range<usize> = 0x10_9f00..0x10_a000;
/// The size of an image is a multiple of this.
const UNIT: usize = 0x1_0000;

/// Makes the firmware image of a guest's ELF file; none if `elf` is not one.
pub fn image(elf: &[u8]) -> Option<Vec<u8>> {
    const PT_LOAD: usize = 1;
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    };
    let (headers, count) = (number(32, 8)?, number(56, 2)?);
    let mut image = Vec::new();
    for header in (0..count).map(|index| headers + index * 56) {
        if number(header, 4)? != PT_LOAD {
            continue;
        }
        let [offset, address, bytes] = [8, 24, 32].map(|at| number(header + at, 8));
        let (offset, bytes) = (offset?, bytes?);
        let at = address?.checked_sub(BASE)?;
        image.resize(image.len().max(at + bytes), 0);
        image[at..at + bytes].copy_from_slice(elf.get(offset..offset.checked_add(bytes)?)?);
    }
    let reset = image.get(RESET.start - BASE..RESET.end - BASE)?.to_vec();
    image.resize((image.len() + reset.len()).next_multiple_of(UNIT), 0);
    let end = image.len() - reset.len();
    image[end..].copy_from_slice(&reset);
    Some(image)
}
