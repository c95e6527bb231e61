//! A copy of a device's state that is consistent at every instant, to continue the guest when this
//! process has died with the device's lock held and a change half made.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;

/// Maximum bytes of a device's state.
const CAPACITY: usize = 128 << 10;

struct Copy {
    bytes: UnsafeCell<Box<[u8]>>,
    length: AtomicUsize,
}

/// Two copies of the state, as CBOR, of which the newest is valid. Nothing is copied until it is
/// [`enabled`](Shadow::enable).
pub struct Shadow {
    enabled: AtomicBool,
    /// Number of published copies. Its lowest bit says which of the two is valid.
    generation: AtomicU64,
    copies: [Copy; 2],
}

// SAFETY: a copy is written by the one thread that holds the device's lock, while the other one is
// valid; it is read when no such thread exists any more.
unsafe impl Sync for Shadow {}

impl std::fmt::Debug for Shadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let generation = self.generation.load(Ordering::Relaxed);
        f.debug_struct("Shadow").field("generation", &generation).finish_non_exhaustive()
    }
}

impl Default for Shadow {
    fn default() -> Self {
        let copy = || Copy { bytes: UnsafeCell::default(), length: AtomicUsize::new(0) };
        Self {
            enabled: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            copies: [copy(), copy()],
        }
    }
}

impl Shadow {
    /// Starts to copy changes. The device's lock must be held.
    pub fn enable(&self, state: &impl Serialize) {
        for copy in &self.copies {
            // SAFETY: the device's lock is held, and nothing reads it before it is published.
            let bytes = unsafe { &mut *copy.bytes.get() };
            if bytes.is_empty() {
                *bytes = vec![0; CAPACITY].into();
            }
        }
        self.enabled.store(true, Ordering::Relaxed);
        self.publish(|| state, None);
    }

    /// Stops copying. The device's lock must be held.
    pub fn disable(&self) {
        self.enabled.store(false, Ordering::Relaxed);
        for copy in &self.copies {
            copy.length.store(0, Ordering::Release);
            // SAFETY: the device's lock is held, and nothing reads a copy without a length.
            unsafe { *copy.bytes.get() = Box::default() };
        }
    }

    /// Publishes a changed state and, if a vCPU's `access` changed it, that the access is done, at
    /// the same instant. The device's lock must be held.
    pub fn publish<T: Serialize>(&self, state: impl FnOnce() -> T, access: Option<&Access>) {
        if !self.enabled.load(Ordering::Relaxed) {
            return;
        }
        let next = self.generation.load(Ordering::Relaxed) + 1;
        let copy = &self.copies[(next & 1) as usize];
        // SAFETY: this copy is not the valid one, and the device's lock keeps other writers away.
        let bytes = unsafe { &mut *copy.bytes.get() };
        let mut room = &mut bytes[..];
        match ciborium::into_writer(&state(), &mut room) {
            Ok(()) => {
                let left = room.len();
                copy.length.store(CAPACITY - left, Ordering::Release);
            }
            // The last complete copy stays valid.
            Err(error) => return tracing::error!(%error, "device_state_not_copied"),
        }
        if let Some(access) = access {
            access.intend(self, next);
        }
        self.generation.store(next, Ordering::Release);
    }

    /// Returns the newest copy; empty if there is none. Async-signal-safe.
    ///
    /// # Safety
    /// No thread that could publish another one may be running.
    pub unsafe fn newest(&self) -> &[u8] {
        let generation = self.generation.load(Ordering::Acquire);
        let copy = &self.copies[(generation & 1) as usize];
        // SAFETY: nothing writes it: the caller's promise.
        let bytes = unsafe { &*copy.bytes.get() };
        bytes.get(..copy.length.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Returns the generation of the newest copy; 0 if nothing is copied. Async-signal-safe.
    pub fn generation(&self) -> u64 {
        match self.enabled.load(Ordering::Relaxed) {
            true => self.generation.load(Ordering::Acquire),
            false => 0,
        }
    }

    fn has_reached(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) >= generation
    }
}

/// A vCPU's progress with the port or MMIO access of its last exit.
///
/// An access has one item, except for string instructions (`rep ins`, `rep outs`). The devices
/// handle the items of string output one by one: those that are left can be written later. String
/// input is handled as a whole, because KVM takes its answers all at once.
#[derive(Debug)]
pub struct Access {
    /// Items that the devices have handled.
    done: AtomicU32,
    /// Items that the devices handle at once.
    at_once: AtomicU32,
    /// The number of items done once the effect that is being published is shown, the shadow that
    /// shows it and the generation from which on it does.
    then_done: AtomicU32,
    generation: AtomicU64,
    shadow: AtomicPtr<Shadow>,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            done: AtomicU32::new(0),
            at_once: AtomicU32::new(1),
            then_done: AtomicU32::new(0),
            generation: AtomicU64::new(0),
            shadow: AtomicPtr::default(),
        }
    }
}

impl Access {
    /// Starts an access, before the vCPU runs.
    pub fn begin(&self) {
        self.shadow.store(std::ptr::null_mut(), Ordering::Release);
        self.done.store(0, Ordering::Release);
        self.at_once.store(1, Ordering::Relaxed);
    }

    /// Makes what the devices publish and complete next that many items.
    pub fn handle_at_once(&self, items: u32) {
        self.at_once.store(items, Ordering::Relaxed);
    }

    fn intend(&self, shadow: &Shadow, generation: u64) {
        self.shadow.store(std::ptr::null_mut(), Ordering::Release);
        let then = self.done.load(Ordering::Relaxed) + self.at_once.load(Ordering::Relaxed);
        self.then_done.store(then, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        self.shadow.store(std::ptr::from_ref(shadow).cast_mut(), Ordering::Release);
    }

    /// Records that the devices have handled one more item, or all that they handle at once, and
    /// that any answer is where KVM expects it.
    pub fn item_done(&self) {
        self.done.fetch_add(self.at_once.load(Ordering::Relaxed), Ordering::Release);
    }

    /// Returns the number of items that they have handled. Async-signal-safe.
    pub fn items_done(&self) -> u32 {
        let done = self.done.load(Ordering::Acquire);
        // SAFETY: null, or a shadow of the bus that the vCPU's thread was given, which outlives it.
        let shadow = unsafe { self.shadow.load(Ordering::Acquire).as_ref() };
        match shadow {
            Some(shadow) if shadow.has_reached(self.generation.load(Ordering::Acquire)) => {
                done.max(self.then_done.load(Ordering::Acquire))
            }
            _ => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(shadow: &Shadow) -> Option<u32> {
        // SAFETY: there is one thread.
        ciborium::from_reader(unsafe { shadow.newest() }).ok()
    }

    #[test]
    fn the_newest_copy_is_the_valid_one() {
        let shadow = Shadow::default();
        shadow.publish(|| 1_u32, None);
        assert_eq!(newest(&shadow), None);
        shadow.enable(&2_u32);
        assert_eq!(newest(&shadow), Some(2));
        shadow.publish(|| 3_u32, None);
        shadow.publish(|| 4_u32, None);
        assert_eq!(newest(&shadow), Some(4));
        shadow.disable();
        shadow.publish(|| 5_u32, None);
        assert_eq!(newest(&shadow), None);
    }

    #[test]
    fn an_item_is_done_as_soon_as_the_copy_shows_it() {
        let (shadow, access) = (Shadow::default(), Access::default());
        shadow.enable(&0_u32);
        access.begin();
        access.intend(&shadow, 2);
        assert_eq!(access.items_done(), 0);
        shadow.publish(|| 1_u32, Some(&access));
        assert_eq!(access.items_done(), 1);
        access.item_done();
        assert_eq!(access.items_done(), 1);
        shadow.publish(|| 2_u32, Some(&access));
        assert_eq!(access.items_done(), 2);
        access.begin();
        assert_eq!(access.items_done(), 0);
        access.item_done();
        assert_eq!(access.items_done(), 1);
    }

    #[test]
    fn items_handled_at_once_are_done_together() {
        let (shadow, access) = (Shadow::default(), Access::default());
        shadow.enable(&0_u32);
        access.begin();
        access.handle_at_once(24);
        assert_eq!(access.items_done(), 0);
        shadow.publish(|| 24_u32, Some(&access));
        assert_eq!(access.items_done(), 24);
        access.item_done();
        assert_eq!(access.items_done(), 24);
        access.begin();
        shadow.publish(|| 25_u32, Some(&access));
        assert_eq!(access.items_done(), 1);
    }

    #[test]
    fn a_state_that_does_not_fit_leaves_the_last_one() {
        let shadow = Shadow::default();
        shadow.enable(&1_u32);
        shadow.publish(|| serde_bytes::ByteBuf::from(vec![0; CAPACITY + 1]), None);
        assert_eq!(newest(&shadow), Some(1));
    }
}
