//! The common configuration structure (chapter 4.1.4.3) and its registers.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};

use super::common::{Common, NO_VECTOR, feature};
use crate::memory::GuestMemory;

/// Bytes of the structure.
pub const BYTES: u64 = 60;

const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const NUM_QUEUES: u64 = 18;
const DEVICE_STATUS: u64 = 20;
const CONFIG_GENERATION: u64 = 21;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFFSET: u64 = 30;
const QUEUE_DESCRIPTORS: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;
const QUEUE_ADDRESSES_END: u64 = QUEUE_DEVICE + 8;
const QUEUE_RESET: u64 = 58;

/// A queue and its vector of MSI-X.
#[derive(Debug)]
pub struct VirtQueue {
    pub(super) queue: Queue,
    pub(super) vector: u16,
}

impl VirtQueue {
    pub(super) fn new(max_size: u16) -> Self {
        let queue = Queue::new(max_size).expect("the sizes are powers of two");
        Self { queue, vector: NO_VECTOR }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.queue.max_size());
    }

    /// Counts the requests that a process had completed when it died before it could note that: the
    /// ring in RAM has them. They were completed in the order in which they were submitted.
    pub(super) fn catch_up(&mut self, memory: &GuestMemory) {
        let queue = &mut self.queue;
        if !queue.ready() {
            return;
        }
        let Ok(used) = queue.used_idx(memory, Ordering::Acquire) else { return };
        let completed = used.0.wrapping_sub(queue.next_used());
        // Only a guest that writes to the ring itself can show more.
        if completed <= queue.size() {
            queue.set_next_used(used.0);
            queue.set_next_avail(queue.next_avail().wrapping_add(completed));
        }
    }
}

/// What a write to a register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reset the device.
    Reset,
    /// The device status may have changed.
    Status,
    /// Enable a queue.
    Enable(usize),
    /// Reset a queue.
    ResetQueue(usize),
}

/// The registers, and what they are about.
pub struct Registers<'a> {
    pub(super) common: &'a mut Common,
    pub(super) queues: &'a mut [VirtQueue],
    /// The features that the device offers.
    pub(super) offered: u64,
    /// Number of vectors of MSI-X.
    pub(super) vectors: u16,
}

impl Registers<'_> {
    fn selected(&self) -> Option<&VirtQueue> {
        self.queues.get(usize::from(self.common.queue_select))
    }

    /// Reads the register at `offset`; zeros if there is none of that size.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let queue = self.selected();
        let of_queue = |get: fn(&VirtQueue) -> u64| queue.map_or(0, get);
        let value = match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => self.common.device_feature_select.into(),
            (DEVICE_FEATURE, 4) => self.common.offered(self.offered).into(),
            (DRIVER_FEATURE_SELECT, 4) => self.common.driver_feature_select.into(),
            (DRIVER_FEATURE, 4) => self.common.chosen().into(),
            (CONFIG_VECTOR, 2) => self.common.config_vector.into(),
            (NUM_QUEUES, 2) => self.queues.len() as u64,
            (DEVICE_STATUS, 1) => self.common.status.into(),
            (CONFIG_GENERATION, 1) => 0,
            (QUEUE_SELECT, 2) => self.common.queue_select.into(),
            (QUEUE_SIZE, 2) => of_queue(|q| q.queue.size().into()),
            (QUEUE_VECTOR, 2) => queue.map_or(NO_VECTOR, |q| q.vector).into(),
            (QUEUE_ENABLE, 2) => of_queue(|q| q.queue.ready().into()),
            (QUEUE_NOTIFY_OFFSET, 2) => self.common.queue_select.into(),
            (QUEUE_DESCRIPTORS..QUEUE_ADDRESSES_END, 4 | 8) => of_queue(match offset & !7 {
                QUEUE_DESCRIPTORS => |q| q.queue.desc_table(),
                QUEUE_DRIVER => |q| q.queue.avail_ring(),
                _ => |q| q.queue.used_ring(),
            })
            .checked_shr(8 * (offset % 8) as u32)
            .unwrap_or(0),
            // A reset is done as soon as it was asked for.
            _ => 0,
        };
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    /// Writes the register at `offset`, if there is one of that size.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let (word, dword) = (value as u16, value as u32);
        let index = usize::from(self.common.queue_select);
        match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => self.common.device_feature_select = dword,
            (DRIVER_FEATURE_SELECT, 4) => self.common.driver_feature_select = dword,
            (DRIVER_FEATURE, 4) => self.common.choose(dword),
            (CONFIG_VECTOR, 2) => self.common.config_vector = self.vector(word),
            (DEVICE_STATUS, 1) if value == 0 => return Some(Request::Reset),
            (DEVICE_STATUS, 1) => {
                self.common.set_status(value as u8, self.offered);
                return Some(Request::Status);
            }
            (QUEUE_SELECT, 2) => self.common.queue_select = word,
            (QUEUE_VECTOR, 2) => {
                let vector = self.vector(word);
                self.queues.get_mut(index)?.vector = vector;
            }
            (QUEUE_ENABLE, 2) if word == 1 => {
                let event_index = self.common.has(feature::EVENT_INDEX);
                let queue = &mut self.queues.get_mut(index)?.queue;
                queue.set_event_idx(event_index);
                queue.set_ready(true);
                return Some(Request::Enable(index));
            }
            (QUEUE_RESET, 2) if word == 1 && self.common.has(feature::QUEUE_RESET) => {
                self.queues.get(index)?;
                return Some(Request::ResetQueue(index));
            }
            _ => self.place(offset, value, data.len())?,
        }
        None
    }

    /// Sets the size or an address of the selected queue, which must not be enabled yet.
    fn place(&mut self, offset: u64, value: u64, size: usize) -> Option<()> {
        let queue = &mut self.queues.get_mut(usize::from(self.common.queue_select))?.queue;
        if queue.ready() {
            return None;
        }
        let (low, high) = match size {
            8 => (Some(value as u32), Some((value >> 32) as u32)),
            4 if offset.is_multiple_of(8) => (Some(value as u32), None),
            4 => (None, Some(value as u32)),
            2 if offset == QUEUE_SIZE => {
                queue.set_size(value as u16);
                return None;
            }
            _ => return None,
        };
        match offset & !7 {
            QUEUE_DESCRIPTORS => queue.set_desc_table_address(low, high),
            QUEUE_DRIVER => queue.set_avail_ring_address(low, high),
            QUEUE_DEVICE => queue.set_used_ring_address(low, high),
            _ => {}
        }
        None
    }

    /// A vector that does not exist is none.
    fn vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::common::status;

    struct Device {
        common: Common,
        queues: Vec<VirtQueue>,
    }

    impl Device {
        fn new() -> Self {
            Self { common: Common::default(), queues: vec![VirtQueue::new(256)] }
        }

        fn registers(&mut self) -> Registers<'_> {
            let Self { common, queues } = self;
            Registers { common, queues, offered: feature::TRANSPORT, vectors: 2 }
        }

        fn write(&mut self, offset: u64, value: u64, size: usize) -> Option<Request> {
            self.registers().write(offset, &value.to_le_bytes()[..size])
        }

        fn read(&mut self, offset: u64, size: usize) -> u64 {
            let mut bytes = [0; 8];
            self.registers().read(offset, &mut bytes[..size]);
            u64::from_le_bytes(bytes)
        }
    }

    #[test]
    fn queue_is_set_up_and_then_fixed() {
        let mut device = Device::new();
        assert_eq!((device.read(NUM_QUEUES, 2), device.read(QUEUE_SIZE, 2)), (1, 256));
        device.write(QUEUE_SIZE, 64, 2);
        device.write(QUEUE_DESCRIPTORS, 0x1_0000, 4);
        device.write(QUEUE_DESCRIPTORS + 4, 1, 4);
        device.write(QUEUE_DRIVER, 0x2_0000, 8);
        device.write(QUEUE_DEVICE, 0x3_0000, 4);
        device.write(QUEUE_VECTOR, 1, 2);
        assert_eq!(device.write(QUEUE_ENABLE, 1, 2), Some(Request::Enable(0)));
        for (register, value) in [(QUEUE_SIZE, 8), (QUEUE_DESCRIPTORS, 0), (QUEUE_DEVICE, 0)] {
            device.write(register, value, if register == QUEUE_SIZE { 2 } else { 4 });
        }
        assert_eq!(device.read(QUEUE_DESCRIPTORS, 8), 0x1_0001_0000);
        assert_eq!(device.read(QUEUE_DESCRIPTORS + 4, 4), 1);
        assert_eq!(
            (device.read(QUEUE_DRIVER, 4), device.read(QUEUE_DEVICE, 4)),
            (0x2_0000, 0x3_0000)
        );
        let rest = [QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE].map(|r| device.read(r, 2));
        assert_eq!(rest, [64, 1, 1]);
    }

    #[test]
    fn queue_and_vector_that_do_not_exist_read_as_none() {
        let mut device = Device::new();
        device.write(CONFIG_VECTOR, 2, 2);
        device.write(QUEUE_SELECT, 1, 2);
        assert_eq!(device.write(QUEUE_ENABLE, 1, 2), None);
        assert_eq!(device.write(QUEUE_RESET, 1, 2), None);
        let read = [CONFIG_VECTOR, QUEUE_VECTOR, QUEUE_SIZE].map(|r| device.read(r, 2));
        assert_eq!(read, [0xffff, 0xffff, 0]);
    }

    #[test]
    fn status_zero_asks_for_a_reset() {
        let mut device = Device::new();
        device.write(DRIVER_FEATURE_SELECT, 1, 4);
        device.write(DRIVER_FEATURE, 1 | 1 << 8, 4);
        assert_eq!(device.write(DEVICE_STATUS, 0xb, 1), Some(Request::Status));
        assert_eq!(device.read(DEVICE_STATUS, 1), 0xb);
        assert_eq!(device.write(QUEUE_RESET, 1, 2), Some(Request::ResetQueue(0)));
        assert_eq!(device.write(DEVICE_STATUS, 0, 1), Some(Request::Reset));
        assert!(
            device.common.has(feature::VERSION_1)
                && device.common.status & status::FEATURES_OK != 0
        );
    }

    #[test]
    fn accesses_of_any_size_and_offset_are_harmless() {
        let mut device = Device::new();
        for offset in (0..64).chain([0xfff, u64::MAX - 8]) {
            for size in 0..=8 {
                device.write(offset, u64::MAX, size);
                device.read(offset, size);
            }
        }
    }
}
