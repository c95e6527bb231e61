//! Memory reserved for when the address space runs out: a pool for allocations, and stack.
//!
//! A failed allocation aborts a Rust process, and a guest must not die because a client sent a
//! long message under a tight `RLIMIT_AS`. If the system allocator fails, memory comes from a pool
//! in the binary, which costs nothing until it is touched.

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::cell::UnsafeCell;
use std::panic::resume_unwind;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use linked_list_allocator::Heap;
use nix::sys::resource::{Resource, getrlimit};

/// Size of the pool in bytes. The longest QMP message takes 36 MiB if it is all brackets.
pub const BYTES: usize = 64 << 20;

/// How often the pool's lock is tried before each try waits for a millisecond, and how often in
/// all: its holder may be waiting for a CPU, and may never release it in a copy of the process.
const QUICK_TRIES: usize = 1000;
const TRIES: usize = QUICK_TRIES + 1000;

/// Global allocator of every program that contains the VMM, including the harness.
#[global_allocator]
static ALLOCATOR: Reserve<System> = Reserve::behind(System);

/// Bytes of the main thread's stack to map at startup: a new process has too few for a message of
/// maximum nesting.
const STACK: usize = 1 << 20;

/// Grows the stack of the calling thread, which must be the main one, by [`STACK`] bytes: later
/// there may be no address space for it, which would kill the process.
pub fn grow_stack() {
    // Close to the limit, growing would kill it now.
    if getrlimit(Resource::RLIMIT_STACK).is_ok_and(|(soft, _)| soft >= 4 * STACK as u64) {
        // SAFETY: nothing is kept below the stack pointer, and the kernel lets the stack grow that
        // far. One page is touched.
        unsafe { asm!("mov byte ptr [rsp - {}], 0", const STACK, options(nostack)) };
    }
}

/// Runs `work` in this thread or, if its stack may be too short, in one that ends with it.
pub fn with_enough_stack<T: Send>(work: impl Fn() -> T + Sync) -> T {
    if getrlimit(Resource::RLIMIT_STACK).is_ok_and(|(soft, _)| soft >= STACK as u64) {
        return work();
    }
    let elsewhere = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, &work);
        Some(thread.ok()?.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    elsewhere.unwrap_or_else(work)
}

/// Whether an allocation has come from a pool since the last [`was_touched`].
static TOUCHED: AtomicBool = AtomicBool::new(false);

/// Returns whether the reserve has served an allocation since the last call.
pub fn was_touched() -> bool {
    TOUCHED.load(Ordering::Relaxed) && TOUCHED.swap(false, Ordering::Relaxed)
}

/// An allocator with a reserve of [`BYTES`] bytes.
pub struct Reserve<A> {
    system: A,
    pool: Pool,
    heap: UnsafeCell<Heap>,
    held: AtomicBool,
}

#[repr(align(4096))]
struct Pool(UnsafeCell<[u8; BYTES]>);

// SAFETY: `heap` is used by the one thread that has set `held`, and `pool` through `heap` alone.
unsafe impl<A: Sync> Sync for Reserve<A> {}

impl<A> Reserve<A> {
    const fn behind(system: A) -> Self {
        Self {
            system,
            pool: Pool(UnsafeCell::new([0; BYTES])),
            heap: UnsafeCell::new(Heap::empty()),
            held: AtomicBool::new(false),
        }
    }

    fn owns(&self, at: *mut u8) -> bool {
        (at as usize).wrapping_sub(self.pool.0.get() as usize) < BYTES
    }

    /// Runs `work` on the heap; `None` if another thread holds it and does not release it.
    fn with_heap<T>(&self, work: impl FnOnce(&mut Heap) -> T) -> Option<T> {
        let free = |_: &usize| !self.held.swap(true, Ordering::Acquire);
        (0..TRIES).find(|n| {
            free(n) || {
                match *n < QUICK_TRIES {
                    true => std::thread::yield_now(),
                    false => std::thread::sleep(Duration::from_millis(1)),
                }
                false
            }
        })?;
        // SAFETY: `held` was not set before, so no other thread uses it.
        let heap = unsafe { &mut *self.heap.get() };
        if heap.size() == 0 {
            // SAFETY: the pool is as long as the heap, and only the heap hands it out.
            unsafe { heap.init(self.pool.0.get().cast(), BYTES) };
        }
        let done = work(heap);
        self.held.store(false, Ordering::Release);
        Some(done)
    }

    fn take(&self, layout: Layout) -> *mut u8 {
        let place = self.with_heap(|heap| heap.allocate_first_fit(layout).ok()).flatten();
        place.map_or(ptr::null_mut(), |place| {
            TOUCHED.store(true, Ordering::Relaxed);
            place.as_ptr()
        })
    }
}

// SAFETY: memory is the system's or the pool's, and goes back to where `owns` says it came from.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Reserve<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller vouches.
        match unsafe { self.system.alloc(layout) } {
            none if none.is_null() => self.take(layout),
            place => place,
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if !self.owns(place) {
            // SAFETY: as the caller vouches; it is the system's.
            return unsafe { self.system.dealloc(place, layout) };
        }
        // Leaked if the heap cannot be locked.
        self.with_heap(|heap| {
            // SAFETY: as the caller vouches; it is the pool's.
            NonNull::new(place).map(|place| unsafe { heap.deallocate(place, layout) })
        });
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller vouches.
        let place = unsafe { self.system.alloc_zeroed(layout) };
        if !place.is_null() {
            return place;
        }
        let place = self.take(layout);
        if !place.is_null() {
            // SAFETY: it is as long as the layout.
            unsafe { place.write_bytes(0, layout.size()) };
        }
        place
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !self.owns(place) {
            // SAFETY: as the caller vouches; it is the system's.
            let moved = unsafe { self.system.realloc(place, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: the caller vouches that no more than `isize::MAX` bytes are asked for.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: as the caller vouches.
        let moved = unsafe { self.alloc(wanted) };
        if !moved.is_null() {
            // SAFETY: both are as long as what is copied, and one of them is new.
            unsafe { place.copy_to_nonoverlapping(moved, layout.size().min(size)) };
            // SAFETY: as the caller vouches; it is not used any more.
            unsafe { self.dealloc(place, layout) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An allocator that can be made to fail.
    struct Fickle(AtomicBool);

    // SAFETY: memory is the system's.
    unsafe impl GlobalAlloc for Fickle {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            match self.0.load(Ordering::Relaxed) {
                // SAFETY: as the caller vouches.
                true => unsafe { System.alloc(layout) },
                false => ptr::null_mut(),
            }
        }

        unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
            // SAFETY: as the caller vouches.
            unsafe { System.dealloc(place, layout) }
        }
    }

    fn reserve(gives: bool) -> &'static Reserve<Fickle> {
        // Too large for a stack.
        static SOME: [Reserve<Fickle>; 2] =
            [const { Reserve::behind(Fickle(AtomicBool::new(false))) }; 2];
        static USED: AtomicBool = AtomicBool::new(false);
        let reserve = &SOME[usize::from(USED.swap(true, Ordering::Relaxed))];
        reserve.system.0.store(gives, Ordering::Relaxed);
        reserve
    }

    fn bytes(n: usize) -> Layout {
        Layout::from_size_align(n, 16).unwrap()
    }

    fn all_free(reserve: &Reserve<Fickle>) -> bool {
        reserve.with_heap(|heap| heap.used()).unwrap() == 0
    }

    #[test]
    fn memory_moves_to_the_pool_and_back() {
        let reserve = reserve(true);
        // SAFETY: each layout is that of the allocation, and only what was written is read.
        unsafe {
            let first = reserve.alloc(bytes(100));
            assert!(!reserve.owns(first) && !was_touched());
            first.write_bytes(7, 100);

            reserve.system.0.store(false, Ordering::Relaxed);
            let second = reserve.realloc(first, bytes(100), 1 << 20);
            assert!(reserve.owns(second) && was_touched() && !was_touched());
            assert_eq!(*second.add(99), 7);
            let zeroed = reserve.alloc_zeroed(bytes(4096));
            assert!((0..4096).all(|n| *zeroed.add(n) == 0));
            assert!(reserve.alloc(bytes(BYTES)).is_null());

            reserve.system.0.store(true, Ordering::Relaxed);
            let third = reserve.realloc(second, bytes(1 << 20), 50);
            assert!(!reserve.owns(third));
            assert_eq!(*third.add(49), 7);
            reserve.dealloc(zeroed, bytes(4096));
            reserve.dealloc(third, bytes(50));
        }
        assert!(all_free(reserve));
    }

    #[test]
    fn allocation_fails_if_lock_is_never_released() {
        let reserve = reserve(false);
        reserve.held.store(true, Ordering::Relaxed);
        // SAFETY: nothing is allocated.
        assert!(unsafe { reserve.alloc(bytes(1)) }.is_null());
        reserve.held.store(false, Ordering::Relaxed);
        assert!(all_free(reserve));
    }
}
