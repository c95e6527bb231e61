//! Reads the files that QEMU passes to its firmware (`fw_cfg`).

use core::arch::asm;

use super::arch::outw;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const SIGNATURE: u16 = 0x00;
const DIRECTORY: u16 = 0x19;
/// The size of a name in the directory, in bytes.
const NAME: usize = 56;

/// A file that is read sequentially; no other file can be read in between.
pub struct File {
    left: usize,
}

impl File {
    /// Fills `buffer` with the next bytes; returns false if fewer are left.
    pub fn read(&mut self, buffer: &mut [u8]) -> bool {
        let enough = buffer.len() <= self.left;
        if enough {
            read(buffer);
            self.left -= buffer.len();
        }
        enough
    }

    /// Reads the whole file.
    pub fn read_whole<'a>(&mut self, buffer: &'a mut [u8]) -> Result<&'a [u8], &'static str> {
        let too_long = "boot: the command line is longer than 4096 bytes";
        let buffer = buffer.get_mut(..self.left).ok_or(too_long)?;
        self.read(buffer);
        Ok(buffer)
    }
}

/// Finds the file with this name, if there is one.
pub fn find(name: &[u8]) -> Result<Option<File>, &'static str> {
    let mut signature = [0; 4];
    outw(SELECTOR, SIGNATURE);
    read(&mut signature);
    if signature != *b"QEMU" {
        return Err("boot: this VMM starts firmware, but has no fw_cfg");
    }
    let mut count = [0; 4];
    outw(SELECTOR, DIRECTORY);
    read(&mut count);
    for _ in 0..u32::from_be_bytes(count) {
        let mut entry = [0; 8 + NAME];
        read(&mut entry);
        let found = &entry[8..];
        let len = found.iter().position(|byte| *byte == 0).unwrap_or(NAME);
        if &found[..len] == name {
            outw(SELECTOR, u16::from_be_bytes([entry[4], entry[5]]));
            let left = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
            return Ok(Some(File { left }));
        }
    }
    Ok(None)
}

fn read(buffer: &mut [u8]) {
    // SAFETY: the device fills exactly the buffer; the direction flag is clear.
    unsafe {
        asm!("rep insb", in("dx") DATA, inout("rdi") buffer.as_mut_ptr() => _,
             inout("rcx") buffer.len() => _, options(nostack, preserves_flags));
    }
}
