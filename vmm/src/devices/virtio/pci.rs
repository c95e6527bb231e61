//! A virtio device behind PCI: what vCPUs and its own thread do with it, one at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::function::{BAR_SIZE, FunctionConfig, ISR, PAGE, VirtioFunction, Wiring, notified};
use super::worker::{Kick, Worker};
use super::{VirtioDevice, VirtioError, VirtioState};
use crate::devices::pci::PciFunction;
use crate::devices::shadow::{Access, Shadow};
use crate::halt::Activity;

/// A virtio device behind PCI.
#[derive(Debug)]
pub struct VirtioPci {
    // Field order is drop order: the thread ends first.
    _worker: Worker,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    slot: u8,
    inner: Mutex<VirtioFunction>,
    shadow: Shadow,
    kick: Arc<Kick>,
    activity: Arc<Activity>,
    /// The address that it decodes; [`u64::MAX`]: none.
    bar: AtomicU64,
}

impl VirtioPci {
    /// Creates the function as after power-on or, if there is a `state`, as it was saved. It does
    /// not access RAM before it is [started](Self::start).
    pub fn new(
        at: FunctionConfig,
        device: Box<dyn VirtioDevice>,
        wiring: Wiring,
        state: Option<VirtioState>,
    ) -> Result<Self, VirtioError> {
        let section = device.state().section();
        let name = format!("{section}.{}", at.slot);
        let failed = |source| VirtioError::Worker { device: name.clone(), source };
        let kick = Arc::new(Kick::new().map_err(failed)?);
        let mut inner = VirtioFunction::new(name.clone(), at, device, wiring, kick.clone());
        if let Some(state) = state {
            inner.restore(state)?;
        }
        let shared = Arc::new(Shared {
            slot: at.slot,
            bar: AtomicU64::new(inner.config.memory_bar().unwrap_or(u64::MAX)),
            inner: Mutex::new(inner),
            shadow: Shadow::default(),
            kick: kick.clone(),
            activity: Arc::default(),
        });
        let (serving, activity) = (shared.clone(), shared.activity.clone());
        let worker = Worker::spawn(&name, kick, activity, move || serving.serve());
        Ok(Self { _worker: worker.map_err(failed)?, shared })
    }

    /// Lets it access RAM and raise interrupts on its own.
    pub fn start(&self) {
        let queues = self.shared.change(None, VirtioFunction::start);
        self.shared.kick.queues(queues);
    }

    /// Stops that. Its requests in flight stay as they are.
    pub fn quiesce(&self) {
        self.shared.lock().runs = false;
    }

    /// Sets its interrupt line again, after KVM's chips were restored.
    pub fn renew_line(&self) {
        let mut inner = self.shared.lock();
        inner.wiring.intx.set(inner.line);
        inner.set_line();
    }

    /// Returns its state. It must be quiet, or the state is only good for a look.
    pub fn state(&self) -> VirtioState {
        self.shared.lock().state()
    }

    /// Enables or disables the copy of its state.
    pub fn enable_shadow(&self, enabled: bool) {
        let inner = self.shared.lock();
        match enabled {
            true => self.shared.shadow.enable(&inner.state()),
            false => self.shared.shadow.disable(),
        }
    }

    /// The copy of its state.
    pub fn shadow(&self) -> &Shadow {
        &self.shared.shadow
    }

    /// Whether its thread is accessing RAM. Once the process [is halted](crate::halt::halt), it will
    /// not begin again. Async-signal-safe.
    pub fn is_active(&self) -> bool {
        self.shared.activity.is_active()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VirtioFunction> {
        // After a panic the device is broken, which `serve` has recorded.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `act`, and publishes what it has changed.
    fn change<T>(&self, access: Option<&Access>, act: impl FnOnce(&mut VirtioFunction) -> T) -> T {
        let mut inner = self.lock();
        let result = act(&mut inner);
        inner.set_line();
        self.bar.store(inner.config.memory_bar().unwrap_or(u64::MAX), Ordering::Release);
        self.shadow.publish(|| inner.state(), access);
        result
    }

    /// Serves the queues that were kicked; returns when to look at all of them again.
    fn serve(&self) -> Option<Instant> {
        let mut inner = self.lock();
        if !inner.runs {
            return None;
        }
        let queues = self.kick.take();
        let served = catch_unwind(AssertUnwindSafe(|| inner.serve(queues)));
        if served.is_err() {
            // The panic has been logged.
            inner.fail();
        }
        inner.set_line();
        self.shadow.publish(|| inner.state(), None);
        // A queue that is not served would stay due.
        inner.device.due().filter(|_| inner.serves_any())
    }
}

impl PciFunction for VirtioPci {
    fn slot(&self) -> u8 {
        self.shared.slot
    }

    fn read_config(&self, at: usize, size: usize, data: &mut [u8], access: &Access) {
        let items = data.chunks_exact_mut(size);
        let inner = self.shared.lock();
        if inner.is_access_data(at) {
            drop(inner);
            let read = |inner: &mut VirtioFunction| {
                items.for_each(|item| inner.read_indirectly(item));
            };
            return self.shared.change(Some(access), read);
        }
        items.for_each(|item| inner.config.read(at, item));
    }

    fn write_config(&self, at: usize, data: &[u8], access: &Access) {
        self.shared.change(Some(access), |inner| inner.write_config(at, data));
    }

    fn decoded(&self) -> Option<(u64, u64)> {
        let bar = self.shared.bar.load(Ordering::Acquire);
        (bar != u64::MAX).then_some((bar, BAR_SIZE))
    }

    fn read_memory(&self, offset: u64, data: &mut [u8], access: &Access) {
        // Only a read of the ISR status has an effect.
        match offset & !(PAGE - 1) {
            ISR => self.shared.change(Some(access), |inner| inner.read(offset, data)),
            _ => self.shared.lock().read(offset, data),
        }
    }

    fn write_memory(&self, offset: u64, data: &[u8], access: &Access) {
        if let Some(queue) = notified(offset) {
            return self.shared.kick.queues(1 << queue);
        }
        self.shared.change(Some(access), |inner| inner.write(offset, data));
    }
}

#[cfg(test)]
mod tests;
