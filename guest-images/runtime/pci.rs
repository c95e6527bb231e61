//! PCI: finds functions on bus 0, gives them addresses, and turns their interrupts on.

use super::arch::{inl, outl};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const COMMAND: u8 = 0x04;
const MEMORY_AND_BUS_MASTER: u32 = 1 << 1 | 1 << 2;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const BAR0: u8 = 0x10;
const BARS: u8 = 6;
const CAPABILITIES: u8 = 0x34;
const INTERRUPT: u8 = 0x3c;
const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;

/// Where BARs that nothing has placed go: no VMM has anything else there.
const FREE_MEMORY: u64 = 0xfd00_0000;
/// The room for those of one function.
const ROOM: u64 = 1 << 18;

/// A function, by its device number.
#[derive(Clone, Copy)]
pub struct Function(u8);

impl Function {
    /// Finds the first function with one of these IDs: vendor in the low half, device above it.
    pub fn find(ids: &[u32]) -> Option<Self> {
        (0..32).map(Self).find(|function| ids.contains(&function.read(0)))
    }

    /// Reads the 32-bit register at `at`.
    pub fn read(self, at: u8) -> u32 {
        self.select(at);
        inl(DATA)
    }

    /// Writes the 32-bit register at `at`.
    pub fn write(self, at: u8, value: u32) {
        self.select(at);
        outl(DATA, value);
    }

    fn select(self, at: u8) {
        outl(ADDRESS, ENABLE | u32::from(self.0) << 11 | u32::from(at & 0xfc));
    }

    /// Gives an address to each memory BAR that has none, and lets the function decode them and
    /// access RAM.
    pub fn enable(self) {
        let mut next = FREE_MEMORY + u64::from(self.0) * ROOM;
        let mut bar = 0;
        while bar < BARS {
            let at = BAR0 + 4 * bar;
            let old = self.read(at);
            self.write(at, u32::MAX);
            let size = !(self.read(at) & !0xf);
            self.write(at, old);
            let is_wide = old & 0b111 == 0b100;
            if size != u32::MAX && old & 1 == 0 && old & !0xf == 0 {
                let size = u64::from(size) + 1;
                next = next.next_multiple_of(size);
                self.write(at, next as u32);
                next += size;
            }
            bar += if is_wide { 2 } else { 1 };
        }
        self.write(COMMAND, self.read(COMMAND) & 0xffff | MEMORY_AND_BUS_MASTER);
    }

    /// The address of a memory BAR.
    pub fn bar(self, bar: u8) -> u64 {
        let (low, wide) = (self.read(BAR0 + 4 * bar), 0b100);
        let high = if low & 0b110 == wide { self.read(BAR0 + 4 * bar + 4) } else { 0 };
        u64::from(high) << 32 | u64::from(low & !0xf)
    }

    /// The offsets of all capabilities with this ID.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u8> {
        let exist = self.read(COMMAND) & STATUS_CAPABILITIES != 0;
        let mut next = if exist { self.read(CAPABILITIES) as u8 } else { 0 };
        // A list that does not end would have more than that.
        let offsets = (0..48).map_while(move |_| {
            let at = next & 0xfc;
            (at != 0).then(|| {
                next = (self.read(at) >> 8) as u8;
                at
            })
        });
        offsets.filter(move |at| self.read(*at) as u8 == id)
    }

    /// Makes each of the first `vectors` vectors of MSI-X send interrupt `first`, `first` + 1, … to
    /// the vCPU with APIC ID 0. Returns false if the function does not have that many.
    pub fn enable_msix(self, first: u8, vectors: u8) -> bool {
        let Some(at) = self.capabilities(MSIX).next() else { return false };
        let (control, place) = (self.read(at), self.read(at + 4));
        if (control >> 16) & 0x7ff < u32::from(vectors) - 1 {
            return false;
        }
        let table = self.bar((place & 7) as u8) + u64::from(place & !7);
        for vector in 0..vectors {
            let entry = [0xfee0_0000, 0, u32::from(first + vector), 0];
            for (word, value) in (0..).zip(entry) {
                let at = table as usize + 16 * usize::from(vector) + 4 * word;
                // SAFETY: the table of the function, in memory that only it decodes.
                unsafe {
                    core::ptr::with_exposed_provenance_mut::<u32>(at).write_volatile(value);
                }
            }
        }
        self.write(at, control | MSIX_ENABLE);
        true
    }

    /// The interrupt line that firmware or VMM have written down.
    pub fn line(self) -> u8 {
        self.read(INTERRUPT) as u8
    }
}
