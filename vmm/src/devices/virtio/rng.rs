//! The entropy device (chapter 5.4): each buffer is filled with random bytes of the host.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::{DeviceState, QueueError, VirtioDevice};
use crate::memory::GuestMemory;

/// The size of its queue.
const QUEUE: [u16; 1] = [256];
/// Maximum bytes for a request; it may be given fewer than it has room for.
const MOST: usize = 4096;

/// How many bytes a guest is given: requests wait until the next period once there were that many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngLimit {
    /// Bytes in a period. The request that exceeds them is still given all that it asks for.
    pub bytes: u64,
    /// The period.
    pub period: Duration,
}

/// The device. Requests in flight over an update are those that wait in the queue. A period ends
/// with the process.
#[derive(Debug, Default)]
pub struct Rng {
    limit: Option<RngLimit>,
    /// Bytes given in this period, and its end.
    given: u64,
    until: Option<Instant>,
}

impl Rng {
    /// Creates the device.
    pub fn new(limit: Option<RngLimit>) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Whether a request is to be handled now.
    fn may_give(&mut self) -> bool {
        let Some(limit) = self.limit else { return true };
        let now = Instant::now();
        if self.until.is_none_or(|until| until <= now) {
            (self.given, self.until) = (0, None);
        }
        self.given < limit.bytes
    }

    /// Counts what a request was given.
    fn give(&mut self, bytes: u64) {
        if let Some(limit) = self.limit {
            self.given += bytes;
            self.until.get_or_insert_with(|| Instant::now() + limit.period);
        }
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u16 {
        4
    }

    fn class(&self) -> [u8; 3] {
        // Like QEMU's: not in any class.
        [0x00, 0xff, 0x00]
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE
    }

    fn process(
        &mut self,
        _index: usize,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<bool, QueueError> {
        let mut used = false;
        let size = usize::from(queue.size());
        for _ in 0..size {
            if !self.may_give() {
                break;
            }
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            // A chain must not be longer than the queue (chapter 2.7.5).
            let buffers = chain.take(size).filter(Descriptor::is_write_only);
            let buffers: Vec<_> = buffers.map(|b| (b.addr(), b.len() as usize)).collect();
            let given = buffers.iter().map(|(_, length)| length).sum::<usize>().min(MOST);
            let mut bytes = [0; MOST];
            random(&mut bytes[..given])?;
            let mut left = &bytes[..given];
            for (address, length) in buffers {
                let (now, later) = left.split_at(left.len().min(length));
                memory.write_slice(now, address)?;
                left = later;
            }
            self.give(given as u64);
            queue.add_used(memory, head, given as u32)?;
            used = true;
        }
        Ok(used)
    }

    fn due(&self) -> Option<Instant> {
        self.until.filter(|_| self.limit.is_some_and(|limit| self.given >= limit.bytes))
    }

    fn state(&self) -> DeviceState {
        DeviceState::Rng
    }
}

/// Fills `bytes` from the host's random number generator.
fn random(bytes: &mut [u8]) -> Result<(), QueueError> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the slice is writable for its whole length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match Errno::result(got) {
            Ok(got) => done += got as usize,
            Err(Errno::EINTR) => {}
            // Never give a guest anything else.
            Err(errno) => return Err(QueueError::Entropy(errno.into())),
        }
    }
    Ok(())
}
