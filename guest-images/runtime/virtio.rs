//! A driver for virtio devices behind PCI (VIRTIO 1.3, chapters 2.7 and 4.1), with one queue.

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU16, Ordering::SeqCst, fence};

use super::pci::Function;

/// The vendor of virtio devices.
const VENDOR: u32 = 0x1af4;
const FIRST_MODERN: u32 = 0x1040;
const VENDOR_SPECIFIC: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;

const DEVICE_FEATURE_SELECT: usize = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: usize = 8;
const DRIVER_FEATURE: usize = 12;
const DEVICE_STATUS: usize = 20;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_VECTOR: usize = 26;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY_OFFSET: usize = 30;
const QUEUE_DESCRIPTORS: usize = 32;
const QUEUE_DRIVER: usize = 40;
const QUEUE_DEVICE: usize = 48;

/// Device status: acknowledged, driver, features, driver ready.
const STATUS: [u8; 4] = [1, 3, 11, 15];
const FEATURES_OK: u8 = 8;

/// Feature bits.
pub const INDIRECT: u64 = 1 << 28;
/// Notifications are suppressed by index.
pub const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

const NEXT: u16 = 1;
/// The device writes to this buffer.
pub const WRITE: u16 = 2;
const TABLE: u16 = 4;

/// Buffers of the queue at most.
pub const SIZE: usize = 64;
/// Buffers of a request at most.
pub const PARTS: usize = 4;

/// A buffer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    const NONE: Self = Self { address: 0, length: 0, flags: 0, next: 0 };

    /// A buffer of `length` bytes at `address`; `flags` is 0 or [`WRITE`].
    pub fn new(address: usize, length: u32, flags: u16) -> Self {
        Self { address: address as u64, length, flags, next: 0 }
    }
}

#[repr(C, align(16))]
struct Ring {
    descriptors: [Descriptor; SIZE],
    available: Available,
    used: Used,
    /// The table of each indirect request.
    tables: [[Descriptor; PARTS]; SIZE],
}

/// Behind the elements that the queue's size says, the ring has the index of the used buffer that is
/// to interrupt.
#[repr(C)]
struct Available {
    flags: u16,
    index: u16,
    ring: [u16; SIZE + 1],
}

/// Behind its elements, the ring has the index of the available buffer that is to notify.
#[repr(C, align(4))]
struct Used {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; SIZE + 1],
}

/// The queue's memory. The device accesses it, so it is read and written as volatile.
static mut RING: Ring = Ring {
    descriptors: [Descriptor::NONE; SIZE],
    available: Available { flags: 0, index: 0, ring: [0; SIZE + 1] },
    used: Used { flags: 0, index: 0, ring: [[0; 2]; SIZE + 1] },
    tables: [[Descriptor::NONE; PARTS]; SIZE],
};
/// Set once a driver uses it.
static TAKEN: AtomicU16 = AtomicU16::new(0);

/// A request that the device has completed.
pub struct Completed {
    /// The number that it was submitted with.
    pub id: u32,
    /// Bytes that the device has written.
    pub written: u32,
}

/// A device with its first queue.
pub struct Device {
    function: Function,
    common: usize,
    isr: usize,
    notify: usize,
    features: u64,
    /// Buffers of the queue.
    size: usize,
    /// Requests submitted and completed so far.
    submitted: u16,
    completed: u16,
    /// The number of submitted requests at the last notification.
    notified: u16,
}

impl Device {
    /// Finds the device with this ID, and sets it up with those of the `wanted` features that it
    /// has. `vector` is the first interrupt of MSI-X, for the configuration; the queue has the next
    /// one. Without it, the device uses its interrupt line.
    pub fn open(id: u32, wanted: u64, vector: Option<u8>) -> Result<Self, &'static str> {
        assert!(TAKEN.swap(1, SeqCst) == 0, "there is one queue");
        let function = Function::find(&[VENDOR | (FIRST_MODERN + id) << 16]);
        let function = function.ok_or("the device")?;
        function.enable();
        let (mut common, mut isr, mut notify, mut multiplier) = (0, 0, 0, 0);
        for at in function.capabilities(VENDOR_SPECIFIC) {
            let kind = (function.read(at) >> 24) as u8;
            let bar = function.read(at + 4) as u8;
            let address = || function.bar(bar) as usize + function.read(at + 8) as usize;
            match kind {
                CAP_COMMON => common = address(),
                CAP_ISR => isr = address(),
                CAP_NOTIFY => (notify, multiplier) = (address(), function.read(at + 16) as usize),
                _ => {}
            }
        }
        if common == 0 || isr == 0 || notify == 0 {
            return Err("the device's registers");
        }
        let mut device = Self {
            function,
            common,
            isr,
            notify,
            features: 0,
            size: 0,
            submitted: 0,
            completed: 0,
            notified: 0,
        };
        device.set_status(0);
        for _ in 0..1000 {
            if device.status() == 0 {
                break;
            }
        }
        device.set_status(STATUS[0]);
        device.set_status(STATUS[1]);
        device.features = device.offered() & wanted | VERSION_1;
        device.choose(device.features);
        device.set_status(STATUS[2]);
        if device.status() & FEATURES_OK == 0 {
            return Err("a device of version 1");
        }
        if let Some(vector) = vector
            && !function.enable_msix(vector, 2)
        {
            return Err("MSI-X of the device");
        }
        device.write(QUEUE_SELECT, 0_u16);
        device.size = SIZE.min(device.read::<u16>(QUEUE_SIZE).into());
        if device.size < 2 * PARTS {
            return Err("a queue for two requests");
        }
        device.notify += device.set_up_queue(vector.is_some()) * multiplier;
        device.set_status(STATUS[3]);
        Ok(device)
    }

    /// Whether this feature is in use.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// The device's interrupt line.
    pub fn line(&self) -> u8 {
        self.function.line()
    }

    fn set_up_queue(&self, msix: bool) -> usize {
        self.write(QUEUE_SIZE, self.size as u16);
        let ring = &raw const RING;
        // SAFETY: only addresses are computed.
        let parts = unsafe {
            [
                (QUEUE_DESCRIPTORS, (&raw const (*ring).descriptors).addr()),
                (QUEUE_DRIVER, (&raw const (*ring).available).addr()),
                (QUEUE_DEVICE, (&raw const (*ring).used).addr()),
            ]
        };
        for (register, address) in parts {
            self.write(register, address as u32);
            self.write(register + 4, (address as u64 >> 32) as u32);
        }
        self.write(QUEUE_VECTOR, if msix { 1_u16 } else { 0xffff });
        self.write(QUEUE_ENABLE, 1_u16);
        self.read::<u16>(QUEUE_NOTIFY_OFFSET).into()
    }

    fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.write(DEVICE_FEATURE_SELECT, select);
            u64::from(self.read::<u32>(DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    fn choose(&self, features: u64) {
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            self.write(DRIVER_FEATURE_SELECT, select);
            self.write(DRIVER_FEATURE, half);
        }
    }

    /// The features that the device says the driver has chosen.
    pub fn chosen(&self) -> u64 {
        let half = |select: u32| {
            self.write(DRIVER_FEATURE_SELECT, select);
            u64::from(self.read::<u32>(DRIVER_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// The features that were chosen.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.read(DEVICE_STATUS)
    }

    /// The status of a device that is in use.
    pub const IN_USE: u8 = STATUS[3];

    fn set_status(&self, status: u8) {
        self.write(DEVICE_STATUS, status);
    }

    fn read<T: Copy>(&self, register: usize) -> T {
        // SAFETY: a register of the device, in memory that only it decodes.
        unsafe { with_exposed_provenance::<T>(self.common + register).read_volatile() }
    }

    fn write<T>(&self, register: usize, value: T) {
        // SAFETY: as above.
        unsafe { with_exposed_provenance_mut::<T>(self.common + register).write_volatile(value) };
    }

    /// Reads the ISR status, which takes back the interrupt line.
    pub fn take_isr(&self) -> u8 {
        // SAFETY: as above.
        unsafe { with_exposed_provenance::<u8>(self.isr).read_volatile() }
    }

    /// Requests that the device has not completed, or that were not taken yet.
    pub fn in_flight(&self) -> u16 {
        self.submitted.wrapping_sub(self.completed)
    }

    /// Requests that fit into the queue.
    pub fn requests(&self) -> usize {
        self.size / PARTS
    }

    /// Puts request `id` into the queue, which is less than [`requests`](Self::requests) and not in
    /// flight. The device is not notified.
    pub fn submit(&mut self, id: usize, parts: &[Descriptor]) {
        let head = id * PARTS;
        let ring = &raw mut RING;
        for (at, part) in parts.iter().enumerate() {
            let is_last = at + 1 == parts.len();
            let indirect = self.has(INDIRECT);
            let next = if indirect { at + 1 } else { head + at + 1 } as u16;
            let flags = part.flags | if is_last { 0 } else { NEXT };
            let whole = Descriptor { flags, next, ..*part };
            // SAFETY: the indices are in range: request `id` has PARTS descriptors and a table of
            // its own, which the device does not use before they are in the ring.
            unsafe {
                match indirect {
                    true => (&raw mut (*ring).tables[head / PARTS][at]).write_volatile(whole),
                    false => (&raw mut (*ring).descriptors[head + at]).write_volatile(whole),
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            if self.has(INDIRECT) {
                let table = (&raw const (*ring).tables[head / PARTS]).addr();
                let length = size_of_val(parts) as u32;
                let whole = Descriptor::new(table, length, TABLE);
                (&raw mut (*ring).descriptors[head]).write_volatile(whole);
            }
            let at = usize::from(self.submitted) % self.size;
            (&raw mut (*ring).available.ring[at]).write_volatile(head as u16);
            self.submitted = self.submitted.wrapping_add(1);
            fence(SeqCst);
            (&raw mut (*ring).available.index).write_volatile(self.submitted);
        }
    }

    /// Tells the device that there are requests, if it wants to know.
    pub fn notify(&mut self) {
        fence(SeqCst);
        let before = core::mem::replace(&mut self.notified, self.submitted);
        let ring = &raw const RING;
        // SAFETY: the device writes these words, and they are read as volatile.
        let wanted = unsafe {
            if self.has(EVENT_INDEX) {
                let event = (&raw const (*ring).used.ring[self.size][0]).read_volatile() as u16;
                let since = self.submitted.wrapping_sub(before);
                self.submitted.wrapping_sub(event).wrapping_sub(1) < since
            } else {
                (&raw const (*ring).used.flags).read_volatile() & 1 == 0
            }
        };
        if wanted {
            // SAFETY: the notification register of the queue.
            unsafe { with_exposed_provenance_mut::<u16>(self.notify).write_volatile(0) };
        }
    }

    /// Asks for an interrupt at the next completed request.
    pub fn ask_for_interrupt(&self) {
        let ring = &raw mut RING;
        // SAFETY: only the driver writes this word.
        unsafe { (&raw mut (*ring).available.ring[self.size]).write_volatile(self.completed) };
        fence(SeqCst);
    }

    /// How many requests the device has completed in all, as the ring says.
    pub fn used_index(&self) -> u16 {
        let ring = &raw const RING;
        // SAFETY: the device writes this word, and it is read as volatile.
        let index = unsafe { (&raw const (*ring).used.index).read_volatile() };
        fence(SeqCst);
        index
    }

    /// How many requests were taken with [`take`](Self::take) and submitted in all.
    pub fn counts(&self) -> [u16; 2] {
        [self.completed, self.submitted]
    }

    /// Takes the next completed request.
    pub fn take(&mut self) -> Option<Completed> {
        if self.used_index() == self.completed {
            return None;
        }
        let (ring, at) = (&raw const RING, usize::from(self.completed) % self.size);
        // SAFETY: the device has written this element, and it is read as volatile.
        let [head, written] = unsafe { (&raw const (*ring).used.ring[at]).read_volatile() };
        self.completed = self.completed.wrapping_add(1);
        Some(Completed { id: head / PARTS as u32, written })
    }
}

/// Requests that fit into the queue at most.
pub const REQUESTS: usize = SIZE / PARTS;
