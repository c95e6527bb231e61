//! The configuration space of a PCI function: what the guest reads there, and which bits it can
//! change.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6. The extended space of PCI Express is empty.

/// Bytes of a function's configuration space.
pub const BYTES: usize = 256;

/// The command register, and its bits that a function of ours uses.
pub const COMMAND: usize = 0x04;
/// The function decodes accesses to its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may access RAM and send message-signalled interrupts.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// The function must not assert INTx.
pub const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS: usize = 0x06;
const STATUS_INTX: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// The first BAR.
pub const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAPABILITY: usize = 0x40;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, subclass and programming interface.
    pub class: [u8; 3],
    /// Subsystem ID; its vendor is the same.
    pub subsystem: u16,
}

/// The configuration space of a function with a header of type 0.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    /// The bits that the guest can change.
    writable: [u8; BYTES],
    /// Where the pointer to the next capability goes, and where that capability does.
    next_pointer: usize,
    next_capability: usize,
}

impl ConfigSpace {
    /// Creates the space of a function without BARs, capabilities and interrupts.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            next_pointer: CAPABILITIES,
            next_capability: FIRST_CAPABILITY,
        };
        let Identity { vendor, device, revision, class: [base, sub, interface], subsystem } =
            identity;
        space.put(0, &vendor.to_le_bytes());
        space.put(2, &device.to_le_bytes());
        space.put(8, &[revision, interface, sub, base]);
        space.put(SUBSYSTEM_VENDOR, &vendor.to_le_bytes());
        space.put(SUBSYSTEM_VENDOR + 2, &subsystem.to_le_bytes());
        space
    }

    /// Adds BAR 0 of `size` bytes, a power of two, in 32-bit memory at `address`, and makes the
    /// function decode it.
    pub fn add_memory_bar(&mut self, address: u32, size: u32) {
        debug_assert!(size.is_power_of_two() && address.is_multiple_of(size));
        self.put(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
        self.put(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        self.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes());
    }

    /// Adds the interrupt pin INTA, routed to `line`.
    pub fn add_interrupt_pin(&mut self, line: u8) {
        self.put(INTERRUPT_LINE, &[line]);
        self.allow(INTERRUPT_LINE, &[0xff]);
        self.put(INTERRUPT_PIN, &[1]);
        self.writable[COMMAND + 1] |= (COMMAND_NO_INTX >> 8) as u8;
    }

    /// Adds a capability; returns its offset. `body` follows the ID and the pointer to the next one,
    /// and `writable` are its bits that the guest can change.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.bytes[self.next_pointer] = at as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.next_pointer = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    /// Reads at `at`, which with the length of `data` may be anywhere.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        for (at, byte) in (at..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Changes the bits at `at` that the guest can change.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        for (at, byte) in (at..BYTES).zip(data) {
            let writable = self.writable[at];
            self.bytes[at] = self.bytes[at] & !writable | byte & writable;
        }
    }

    /// Returns the 16-bit register at `at`.
    pub fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Returns the 32-bit register at `at`.
    pub fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    /// Returns the address of BAR 0; `None` while the function does not decode it.
    pub fn memory_bar(&self) -> Option<u64> {
        let decodes = self.word(COMMAND) & COMMAND_MEMORY != 0;
        decodes.then_some(u64::from(self.dword(BAR0) & !0xf))
    }

    /// Sets whether the status register shows a pending INTx.
    pub fn show_intx(&mut self, pending: bool) {
        self.bytes[STATUS] &= !STATUS_INTX;
        self.bytes[STATUS] |= if pending { STATUS_INTX } else { 0 };
    }

    /// Returns the content of all registers that the guest can change.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.iter().zip(self.writable).map(|(byte, writable)| byte & writable).collect()
    }

    /// Sets those registers to what [`save`](Self::save) returned. What the guest cannot change
    /// stays as it is.
    pub fn restore(&mut self, saved: &[u8]) {
        self.write(0, saved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: [0xff, 1, 2],
            subsystem: 4,
        };
        let mut space = ConfigSpace::new(identity);
        space.add_memory_bar(0xf000_0000, 0x8000);
        space.add_interrupt_pin(17);
        space.add_capability(0x09, &[14, 1, 2, 3], &[0, 0, 0xff]);
        space.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        space
    }

    fn read<const N: usize>(space: &ConfigSpace, at: usize) -> [u8; N] {
        let mut bytes = [0xaa; N];
        space.read(at, &mut bytes);
        bytes
    }

    #[test]
    fn header_shows_identity_and_capabilities() {
        let space = space();
        assert_eq!(read(&space, 0), [0xf4, 0x1a, 0x44, 0x10]);
        assert_eq!(read(&space, 8), [1, 2, 1, 0xff]);
        assert_eq!(read(&space, 0x2c), [0xf4, 0x1a, 4, 0]);
        assert_eq!(read(&space, 0x3c), [17, 1]);
        assert_eq!(space.word(STATUS), u16::from(STATUS_CAPABILITIES));
        let [first] = read(&space, CAPABILITIES);
        let [id, second] = read(&space, first.into());
        assert_eq!((first, id, second), (0x40, 0x09, 0x48));
        assert_eq!(read(&space, second.into()), [0x11, 0]);
    }

    #[test]
    fn bar_shows_its_size_and_takes_an_address() {
        let mut space = space();
        assert_eq!(space.memory_bar(), Some(0xf000_0000));
        space.write(COMMAND, &[0]);
        assert_eq!(space.memory_bar(), None);
        space.write(BAR0, &[0xff; 4]);
        assert_eq!(space.dword(BAR0), !0x7fff);
        space.write(BAR0, &0xe123_4567_u32.to_le_bytes());
        space.write(COMMAND, &[2]);
        assert_eq!(space.memory_bar(), Some(0xe123_0000));
        space.write(BAR0 + 4, &[0xff; 4]);
        assert_eq!(space.dword(BAR0 + 4), 0);
    }

    #[test]
    fn only_writable_bits_change_and_are_saved() {
        let mut first = space();
        for at in 0..BYTES {
            first.write(at, &[0xff]);
        }
        assert_eq!(read(&first, 0), [0xf4, 0x1a, 0x44, 0x10]);
        assert_eq!(first.word(COMMAND), 0x0406);
        let mut second = space();
        second.restore(&first.save());
        assert_eq!(first.bytes, second.bytes);
        second.restore(&[0xff; 3 * BYTES]);
        assert_eq!(first.bytes, second.bytes);
    }

    #[test]
    fn accesses_of_any_size_and_offset_are_harmless() {
        let mut space = space();
        for at in [0, 3, 0x3c, 0xff, 0x100, 0xffc, 0xffff] {
            for length in 0..=8 {
                space.write(at, &vec![0xff; length]);
                space.read(at, &mut vec![0; length]);
            }
        }
        assert_eq!(read(&space, 0x100), [0; 4]);
    }
}
