use std::time::{Duration, Instant};

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::pci::{COMMAND, INTX_LINES, Intx, IntxLines, Msix};
use crate::devices::virtio::{Rng, RngLimit};
use crate::memory::{MemoryConfig, PageKind, RamBlock};

const SLOT: u8 = 1;
const BAR: u32 = 0xf000_0000;
/// The queue's parts, and the buffer of each request.
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x2_0000;
const USED: u64 = 0x3_0000;
const BUFFERS: u64 = 0x4_0000;
const BUFFER: u32 = 64;
const DRIVER_OK: u8 = 15;
const NEEDS_RESET: u8 = 64;
/// The notification register, in the BAR.
const NOTIFY: u64 = 0x3000;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// Offsets in the capability for accesses through configuration space.
const ACCESS_OFFSET: usize = 8;
const ACCESS_LENGTH: usize = 12;
const ACCESS_DATA: usize = 16;

struct Driver {
    function: VirtioPci,
    vm: Arc<VmFd>,
    ram: RamBlock,
    submitted: u16,
}

fn function(ram: &RamBlock, rng: Rng, state: Option<VirtioState>) -> (VirtioPci, Arc<VmFd>) {
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let intx = Intx::new(IntxLines::new(vm.clone()), SLOT);
    let wiring = Wiring { vm: vm.clone(), intx, memory: ram.memory().clone() };
    let at = FunctionConfig { slot: SLOT, bar: BAR, line: 17 };
    (VirtioPci::new(at, Box::new(rng), wiring, state).unwrap(), vm)
}

impl Driver {
    fn new(rng: Rng) -> Self {
        let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
        let ram = RamBlock::create(memory).unwrap();
        let (function, vm) = function(&ram, rng, None);
        Self { function, vm, ram, submitted: 0 }
    }

    /// Continues with the same RAM in another VM, as in another process.
    fn move_to_new_process(self, state: VirtioState) -> Self {
        let Self { function: old, ram, submitted, .. } = self;
        drop(old);
        let (function, vm) = function(&ram, Rng::default(), Some(state));
        Self { function, vm, ram, submitted }
    }

    fn write(&self, offset: u64, value: u64, size: usize) {
        let bytes = &value.to_le_bytes()[..size];
        self.function.write_memory(offset, bytes, &Access::default());
    }

    fn read(&self, offset: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.function.read_memory(offset, &mut bytes[..size], &Access::default());
        u64::from_le_bytes(bytes)
    }

    fn config(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.function.read_config(at, 4, &mut bytes, &Access::default());
        u32::from_le_bytes(bytes)
    }

    fn write_config(&self, at: usize, value: u32) {
        self.function.write_config(at, &value.to_le_bytes(), &Access::default());
    }

    fn status(&self) -> u8 {
        self.read(20, 1) as u8
    }

    /// Does what a driver does at its start.
    fn set_up(&self) {
        self.write_config(COMMAND, 1 << 1 | 1 << 2);
        self.write(8, 1, 4);
        self.write(12, 1, 4);
        self.write(20, 11, 1);
        self.write(22, 0, 2);
        for (register, address) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
            self.write(register, address, 4);
        }
        self.write(28, 1, 2);
        self.write(20, DRIVER_OK.into(), 1);
    }

    /// Puts a request into the queue whose buffer is at `address`.
    fn submit_at(&mut self, address: u64) {
        let index = self.submitted % 256;
        let memory = self.ram.memory();
        let put = |at: u64, value: u64, size: usize| {
            memory.write_slice(&value.to_le_bytes()[..size], GuestAddress(at)).unwrap();
        };
        let descriptor = DESCRIPTORS + 16 * u64::from(index);
        put(descriptor, address, 8);
        put(descriptor + 8, BUFFER.into(), 4);
        put(descriptor + 12, 2, 2);
        put(AVAILABLE + 4 + 2 * u64::from(index), index.into(), 2);
        self.submitted += 1;
        put(AVAILABLE + 2, self.submitted.into(), 2);
    }

    fn submit(&mut self) {
        self.submit_at(BUFFERS + u64::from(BUFFER) * u64::from(self.submitted));
    }

    fn notify(&self) {
        self.write(NOTIFY, 0, 2);
    }

    fn used(&self) -> u16 {
        self.ram.memory().read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Waits until `condition` holds.
    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !condition(self) {
            assert!(
                Instant::now() < until,
                "{what}: {} used, status {}",
                self.used(),
                self.status()
            );
            std::thread::yield_now();
        }
    }

    /// Whether the IOAPIC sees the line, which is masked, as asserted.
    fn interrupts(&self) -> bool {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        self.vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: of the IOAPIC KVM has filled this member of the union.
        unsafe { chip.chip.ioapic.irr >> INTX_LINES[Intx::index(SLOT)] & 1 == 1 }
    }
}

#[test]
fn requests_are_handled_once_it_is_started() {
    let mut driver = Driver::new(Rng::default());
    driver.set_up();
    driver.submit();
    driver.notify();
    driver.function.quiesce();
    assert_eq!((driver.used(), driver.interrupts()), (0, false));
    driver.function.start();
    driver.wait("the request", |driver| driver.used() == 1 && driver.interrupts());
    assert_eq!(driver.read(ISR, 1), u64::from(ISR_QUEUE));
    assert_eq!((driver.read(ISR, 1), driver.interrupts()), (0, false));
    driver.function.quiesce();
    driver.submit();
    driver.notify();
    let state = driver.function.state();
    let driver = driver.move_to_new_process(state);
    assert_eq!(driver.used(), 1);
    driver.function.start();
    driver.wait("the request of the old process", |driver| driver.used() == 2);
}

#[test]
fn request_completed_by_a_process_that_died_is_not_repeated() {
    let mut driver = Driver::new(Rng::default());
    driver.set_up();
    driver.function.start();
    let before = driver.function.state();
    (0..3).for_each(|_| driver.submit());
    driver.notify();
    driver.wait("the requests", |driver| driver.used() == 3 && driver.interrupts());
    let content = |driver: &Driver| {
        let mut bytes = vec![0; 3 * BUFFER as usize];
        driver.ram.memory().read_slice(&mut bytes, GuestAddress(BUFFERS)).unwrap();
        bytes
    };
    let written = content(&driver);
    // The copy of the state does not show them.
    let mut driver = driver.move_to_new_process(before);
    driver.function.start();
    // Whether the guest had been interrupted is not known.
    driver.wait("the interrupt", Driver::interrupts);
    driver.submit();
    driver.notify();
    driver.wait("another request", |driver| driver.used() == 4);
    assert_eq!(content(&driver), written);
    assert_eq!(driver.status(), DRIVER_OK);
}

#[test]
fn unused_device_is_left_alone_in_the_new_process() {
    let driver = Driver::new(Rng::default());
    let state = driver.function.state();
    let driver = driver.move_to_new_process(state.clone());
    driver.function.start();
    assert_eq!((driver.function.state(), driver.interrupts()), (state, false));
}

#[test]
fn requests_beyond_the_limit_wait() {
    let limit = RngLimit { bytes: u64::from(BUFFER) * 2, period: Duration::from_millis(20) };
    let mut driver = Driver::new(Rng::new(Some(limit)));
    driver.set_up();
    driver.function.start();
    let began = Instant::now();
    (0..6).for_each(|_| driver.submit());
    driver.notify();
    driver.wait("all requests", |driver| driver.used() == 6);
    assert!(began.elapsed() >= 2 * limit.period, "{:?}", began.elapsed());
}

#[test]
fn reset_device_is_not_woken_for_its_limit() {
    let limit = RngLimit { bytes: 1, period: Duration::from_millis(1) };
    let mut driver = Driver::new(Rng::new(Some(limit)));
    driver.set_up();
    driver.function.start();
    driver.submit();
    driver.notify();
    driver.wait("the request", |driver| driver.used() == 1);
    driver.write(20, 0, 1);
    assert_eq!(driver.function.shared.serve(), None);
}

#[test]
fn string_input_through_configuration_space_is_one_access() {
    let driver = Driver::new(Rng::default());
    let capability = driver.function.shared.lock().access_capability;
    driver.write(20, 1, 1);
    driver.write_config(capability + ACCESS_OFFSET, 20);
    driver.write_config(capability + ACCESS_LENGTH, 1);
    driver.function.enable_shadow(true);
    let before = driver.function.shadow().generation();
    let (mut items, access) = ([0xff; 3], Access::default());
    driver.function.read_config(capability + ACCESS_DATA, 1, &mut items, &access);
    assert_eq!((items, driver.function.shadow().generation()), ([1; 3], before + 1));
}

#[test]
fn invalid_request_breaks_the_device_until_it_is_reset() {
    let mut driver = Driver::new(Rng::default());
    driver.set_up();
    driver.function.start();
    driver.submit_at(u64::MAX - 8);
    driver.notify();
    driver.wait("the failure", |driver| driver.status() & NEEDS_RESET != 0);
    assert_eq!(driver.read(ISR, 1), u64::from(ISR_CONFIG));
    driver.write(20, 0, 1);
    assert_eq!((driver.status(), driver.read(28, 2)), (0, 0));
}

#[test]
fn device_that_is_not_bus_master_does_not_touch_ram() {
    let mut driver = Driver::new(Rng::default());
    driver.set_up();
    driver.function.start();
    driver.write_config(COMMAND, 1 << 1);
    driver.submit();
    driver.notify();
    // The lock is free again once the thread has looked at the queue.
    driver.wait("the notification", |driver| driver.function.shared.kick.take() == 0);
    assert_eq!(driver.used(), 0);
    // What was notified meanwhile is looked at without another notification.
    driver.write_config(COMMAND, 1 << 1 | 1 << 2);
    driver.wait("the request", |driver| driver.used() == 1);
}

#[test]
fn bar_can_be_moved_and_reached_through_configuration_space() {
    let driver = Driver::new(Rng::default());
    assert_eq!(driver.function.decoded(), Some((BAR.into(), BAR_SIZE)));
    driver.write_config(0x10, 0xf100_0000);
    assert_eq!(driver.function.decoded(), Some((0xf100_0000, BAR_SIZE)));
    driver.write_config(COMMAND, 0);
    assert_eq!(driver.function.decoded(), None);
    let capability = driver.function.shared.lock().access_capability;
    driver.write_config(capability + ACCESS_OFFSET, 20);
    driver.write_config(capability + ACCESS_LENGTH, 1);
    driver.write_config(capability + ACCESS_DATA, 1);
    assert_eq!((driver.status(), driver.config(capability + ACCESS_DATA)), (1, 1));
    driver.write_config(capability + ACCESS_OFFSET, BAR_SIZE as u32);
    assert_eq!(driver.config(capability + ACCESS_DATA), 0);
}

#[test]
fn rejects_states_of_other_devices() {
    let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
    let ram = RamBlock::create(memory).unwrap();
    let driver = Driver::new(Rng::default());
    driver.set_up();
    let state = driver.function.state();
    let refused = |change: &dyn Fn(&mut VirtioState)| {
        let mut other = state.clone();
        change(&mut other);
        let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
        let intx = Intx::new(IntxLines::new(vm.clone()), SLOT);
        let wiring = Wiring { vm, intx, memory: ram.memory().clone() };
        let at = FunctionConfig { slot: SLOT, bar: BAR, line: 17 };
        VirtioPci::new(at, Box::new(Rng::default()), wiring, Some(other)).unwrap_err().to_string()
    };
    let errors = [
        refused(&|state| state.queues.clear()),
        refused(&|state| state.msix = Msix::new(9)),
        refused(&|state| state.queues[0] = state.queues[0].with_size(3)),
    ];
    insta::assert_debug_snapshot!(errors);
}
