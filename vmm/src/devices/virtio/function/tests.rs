use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::pci::IntxLines;
use crate::devices::virtio::Rng;
use crate::memory::{MemoryConfig, PageKind, RamBlock};

const RAM: u64 = 4 << 20;
/// Where a driver that means well would have a queue.
const RING: u64 = 0x1_0000;
const AT: FunctionConfig = FunctionConfig { slot: 1, bar: 0xf000_0000, line: 17 };

fn function(ram: &RamBlock, vm: &Arc<VmFd>) -> VirtioFunction {
    let intx = Intx::new(IntxLines::new(vm.clone()), AT.slot);
    let wiring = Wiring { vm: vm.clone(), intx, memory: ram.memory().clone() };
    let kick = Arc::new(Kick::new().unwrap());
    VirtioFunction::new("test".to_owned(), AT, Box::new(Rng::default()), wiring, kick)
}

/// A guest that does anything.
struct Guest<'a> {
    random: fastrand::Rng,
    ram: &'a RamBlock,
}

impl Guest<'_> {
    fn bytes(&mut self) -> Vec<u8> {
        let length = [1, 2, 4, 8][self.random.usize(..4)];
        let extreme = self.random.u8(..4);
        let byte = |random: &mut fastrand::Rng| match extreme {
            0 => 0,
            1 => 0xff,
            _ => random.u8(..),
        };
        (0..length).map(|_| byte(&mut self.random)).collect()
    }

    /// Puts anything into a ring, at plausible places.
    fn scribble(&mut self) {
        for _ in 0..8 {
            let at = RING + self.random.u64(..0x4000);
            self.ram.memory().write_slice(&self.bytes(), GuestAddress(at)).unwrap();
        }
    }

    /// Sets a queue up as a driver does, with the parts of the ring at plausible places.
    fn set_up(&mut self, function: &mut VirtioFunction) {
        let place = |random: &mut fastrand::Rng| match random.u8(..8) {
            0 => u64::MAX,
            1 => RAM - 64,
            _ => RING + random.u64(..8) * 0x800,
        };
        function.write_config(COMMAND, &[6, 0]);
        for (register, value, size) in [
            (8, 1, 4),
            (12, 1 | 1 << 8, 4),
            (8, 0, 4),
            (12, self.random.u64(..) & (feature::INDIRECT | feature::EVENT_INDEX), 4),
            (20, 11, 1),
            (24, 1 << self.random.u64(..10), 2),
            (32, place(&mut self.random), 8),
            (40, place(&mut self.random), 8),
            (48, place(&mut self.random), 8),
            (28, 1, 2),
            (20, 15, 1),
        ] {
            function.write(register, &u64::to_le_bytes(value)[..size]);
        }
    }

    fn act(&mut self, function: &mut VirtioFunction) {
        let offset = match self.random.u8(..4) {
            0 => self.random.u64(..64),
            1 => MSIX_TABLE + self.random.u64(..48),
            2 => self.random.u64(..BAR_SIZE),
            _ => self.random.u64(..8) * PAGE,
        };
        let (at, mut bytes) = (self.random.usize(..300), self.bytes());
        match self.random.u8(..12) {
            0 => function.write_config(at, &bytes),
            1 => function.read_indirectly(&mut bytes),
            2 => self.set_up(function),
            3..6 => self.scribble(),
            6..8 => function.serve(u64::MAX),
            8 => drop(function.start()),
            9 => function.read(offset, &mut bytes),
            _ => function.write(offset, &bytes),
        }
    }
}

#[test]
fn whatever_the_guest_does_is_harmless_and_survives_an_update() {
    let config = MemoryConfig { size: RAM, share: true, pages: PageKind::Small };
    let ram = RamBlock::create(config).unwrap();
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let mut live = 0;
    for seed in 0..1000 {
        let mut function = function(&ram, &vm);
        let mut guest = Guest { random: fastrand::Rng::with_seed(seed), ram: &ram };
        for _ in 0..300 {
            guest.act(&mut function);
            live += u32::from(function.common.is_live());
        }
        let state = function.state();
        let mut next = self::function(&ram, &vm);
        next.restore(state.clone()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(next.state(), state, "seed {seed}");
    }
    // Else nothing was tested.
    assert!(live > 10_000, "live in {live} of 300000 steps");
}
