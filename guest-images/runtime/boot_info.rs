//! Reads the boot information from the VMM: `hvm_start_info` of the PVH boot protocol, or, if the
//! guest is the firmware, QEMU's `fw_cfg`.

use super::fw_cfg::{self, File};
use super::options::Options;
use super::shim::FROM_FIRMWARE;
use super::usable::{self, Range};

const START_MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
/// The largest number of RAM ranges; a VMM reports two or three.
const MAX_RANGES: usize = 8;
/// The size limit of the command line, in bytes.
const MAX_LINE: usize = 4096;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_at: u64,
    cmdline_at: u64,
    rsdp_at: u64,
    memmap_at: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemmapEntry {
    start: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// The boot information that a guest keeps.
pub struct BootInfo {
    /// The command line.
    pub options: Options,
    ranges: [Range; MAX_RANGES],
    len: usize,
}

impl BootInfo {
    /// Copies everything from the VMM's structures, which may be in RAM that the guest is about to
    /// fill, or where the mailbox goes.
    ///
    /// # Safety
    /// `at` is the value of EBX at the PVH entry point.
    pub unsafe fn read(at: u64) -> Result<Self, &'static str> {
        if at == u64::from(FROM_FIRMWARE) {
            return Self::from_fw_cfg();
        }
        // SAFETY: by the boot protocol there is such a structure, in RAM below 4 GiB, which is
        // mapped; no other vCPU runs.
        let info = unsafe { &*core::ptr::with_exposed_provenance::<StartInfo>(at as usize) };
        if info.magic != START_MAGIC {
            return Err("boot: no hvm_start_info in EBX");
        }
        if info.version < 1 || info.memmap_at == 0 || info.memmap_entries == 0 {
            return Err("boot: hvm_start_info has no memory map (version 1 or later is needed)");
        }
        // SAFETY: as above; version 1 has the map.
        let memmap = unsafe {
            core::slice::from_raw_parts(
                core::ptr::with_exposed_provenance::<MemmapEntry>(info.memmap_at as usize),
                info.memmap_entries as usize,
            )
        };

        let options = Options::parse(match info.cmdline_at {
            0 => b"",
            // SAFETY: as above; a zero byte ends the line, and it is in RAM with room after it.
            at => unsafe { c_str(at) }?,
        })?;

        let ram = memmap.iter().filter(|entry| entry.kind == RAM);
        Self::new(options, ram.map(|entry| (entry.start, entry.bytes)))
    }

    fn from_fw_cfg() -> Result<Self, &'static str> {
        let mut line = [0; MAX_LINE];
        let options = match fw_cfg::find(b"opt/cpr/cmdline")? {
            None => b"",
            Some(mut file) => file.read_whole(&mut line)?,
        };
        let options = Options::parse(options)?;
        let no_map = "boot: fw_cfg has no memory map (etc/e820)";
        let map = fw_cfg::find(b"etc/e820")?.ok_or(no_map)?;
        Self::new(options, RamOfE820(map))
    }

    fn new(
        options: Options,
        ram: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Self, &'static str> {
        let mut ranges = [Range { start: 0, end: 0 }; MAX_RANGES];
        let mut len = 0;
        let mut left = options.ram;
        let usable = ram.flat_map(|(start, bytes)| usable::parts(start, bytes));
        for Range { start, end } in usable {
            if left < 4096 {
                continue;
            }
            let bytes = (end - start).min(left & !4095);
            left -= bytes;
            *ranges.get_mut(len).ok_or("boot: more than 8 ranges of RAM")? =
                Range { start, end: start + bytes };
            len += 1;
        }
        Ok(Self { options, ranges, len })
    }

    /// The RAM that the guest may fill.
    pub fn ram(&self) -> &[Range] {
        &self.ranges[..self.len]
    }

    /// Bytes of RAM that the guest may fill.
    pub fn ram_bytes(&self) -> u64 {
        self.ram().iter().map(|range| range.end - range.start).sum()
    }
}

/// Start and length of the RAM ranges in the file `etc/e820`, whose entries are not padded.
struct RamOfE820(File);

impl Iterator for RamOfE820 {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut entry = [0; 20];
            if !self.0.read(&mut entry) {
                return None;
            }
            let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| entry[at + i]));
            if word(12) >> 32 == u64::from(RAM) {
                return Some((word(0), word(8)));
            }
        }
    }
}

/// # Safety
/// There is readable RAM at `at`, up to a zero byte or for [`MAX_LINE`] bytes.
unsafe fn c_str(at: u64) -> Result<&'static [u8], &'static str> {
    let start = core::ptr::with_exposed_provenance::<u8>(at as usize);
    for len in 0..MAX_LINE {
        // SAFETY: the caller vouches for it.
        if unsafe { *start.add(len) } == 0 {
            // SAFETY: these bytes have just been read.
            return Ok(unsafe { core::slice::from_raw_parts(start, len) });
        }
    }
    Err("boot: the command line is longer than 4095 bytes")
}
