//! The entropy device (chapter 5.4): each buffer is filled with random bytes of the host.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::{DeviceState, QueueError, VirtioDevice};
use crate::memory::GuestMemory;

/// The size of its queue.
const QUEUE: [u16; 1] = [256];
/// Maximum bytes for a request; it may be given fewer than it has room for.
const MOST: usize = 4096;

/// The device. An update finds no request in flight: each is handled as a whole.
#[derive(Debug, Default)]
pub struct Rng;

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
        for _ in 0..queue.size() {
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            let mut bytes = [0; MOST];
            random(&mut bytes);
            let mut left = &bytes[..];
            for buffer in chain.writable() {
                let (now, later) = left.split_at(left.len().min(buffer.len() as usize));
                memory.write_slice(now, buffer.addr())?;
                left = later;
            }
            queue.add_used(memory, head, (MOST - left.len()) as u32)?;
            used = true;
        }
        Ok(used)
    }

    fn state(&self) -> DeviceState {
        DeviceState::Rng
    }
}

/// Fills `bytes` from the host's random number generator, which fails only while the host boots.
fn random(bytes: &mut [u8]) {
    // SAFETY: the slice is writable for its whole length.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
}
