//! A fake guest: threads that update a mailbox.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use guest_images::mailbox::{MAILBOX_GPA, MAILBOX_LAYOUT, MAILBOX_MAGIC, Mailbox, damage_kind};
use guest_images::mailbox::{damage_state, phase};
use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::observe::clock;

/// Time between two heartbeats.
const BEAT: Duration = Duration::from_micros(200);

/// RAM and the threads that simulate vCPUs.
pub struct Guest {
    ram: File,
    bytes: u64,
    /// Never unmapped.
    memory: &'static MmapRaw,
    running: Arc<(Mutex<bool>, Condvar)>,
    /// Whether the vCPUs execute between two heartbeats, instead of sleeping.
    pub busy: bool,
    /// The thread IDs of the vCPUs.
    pub threads: Vec<i32>,
}

impl Guest {
    /// A stopped guest in `ram`.
    pub fn new(ram: OwnedFd, shared: bool, dumped: bool) -> io::Result<Self> {
        let ram = File::from(ram);
        let bytes = ram.metadata()?.len();
        let mut options = MmapOptions::new();
        options.len(bytes as usize);
        let memory = match shared {
            true => options.map_raw(&ram)?,
            // SAFETY: accessed only through raw pointers, as the other kind of mapping.
            false => unsafe { options.map_copy(&ram) }?.into(),
        };
        memory.advise(if dumped { Advice::DoDump } else { Advice::DontDump })?;
        let memory = Box::leak(Box::new(memory));
        let running = Arc::new((Mutex::new(false), Condvar::new()));
        let guest = Self { ram, bytes, memory, running, busy: false, threads: Vec::new() };
        guest.touch();
        Ok(guest)
    }

    fn mailbox(&self) -> &'static Mailbox {
        // SAFETY: inside the mapping, which is never unmapped; every bit pattern is a `Mailbox`.
        unsafe { &*self.memory.as_ptr().add(MAILBOX_GPA as usize).cast() }
    }

    /// Touches a page in each MiB, so that RAM has page frames to check.
    fn touch(&self) {
        for offset in (0..self.bytes).step_by(1 << 20) {
            // SAFETY: inside the mapping; no one else uses the first word of a MiB.
            let word: &AtomicU64 = unsafe { &*self.memory.as_ptr().add(offset as usize).cast() };
            word.fetch_max(1, Relaxed);
        }
    }

    /// Sets the mailbox up as a booted guest does.
    pub fn boot(&self, cpus: usize) {
        let mailbox = self.mailbox();
        mailbox.layout.store(MAILBOX_LAYOUT, Relaxed);
        mailbox.marker_go.store(0, Relaxed);
        mailbox.gap_request.store(0, Relaxed);
        for (byte, value) in mailbox.name.iter().zip(*b"mock") {
            byte.store(value, Relaxed);
        }
        mailbox.boots.fetch_add(1, Relaxed);
        mailbox.cpus_online.store(cpus as u32, Relaxed);
        for cpu in &mailbox.cpus[..cpus] {
            cpu.online.store(1, Relaxed);
            cpu.tsc.store(clock::tsc(), Relaxed);
            cpu.gap_ack.store(0, Relaxed);
            cpu.gap.store(0, Relaxed);
        }
        mailbox.phase.store(phase::RUNNING, Release);
        mailbox.magic.store(MAILBOX_MAGIC, Release);
    }

    /// Starts the threads of `cpus` vCPUs, which beat while the guest runs. With `always`, the
    /// first one beats even while it is stopped.
    pub fn start(&mut self, cpus: usize, always: bool) -> io::Result<()> {
        let (sender, receiver) = std::sync::mpsc::channel();
        for index in 0..cpus {
            let (mailbox, running) = (self.mailbox(), self.running.clone());
            let (always, busy) = (always && index == 0, self.busy);
            let sender = sender.clone();
            let name = format!("vcpu{index}");
            let vcpu = std::thread::Builder::new().name(name).spawn(move || {
                // `start` waits for it.
                let _ = sender.send(nix::unistd::gettid().as_raw());
                loop {
                    {
                        let (running, changed) = &*running;
                        let running = running.lock().unwrap_or_else(PoisonError::into_inner);
                        // A stopped vCPU does not run at all.
                        let _running = changed
                            .wait_while(running, |running| !*running && !always)
                            .unwrap_or_else(PoisonError::into_inner);
                        beat(mailbox, index);
                    }
                    match busy {
                        true => std::thread::yield_now(),
                        false => std::thread::sleep(BEAT),
                    }
                }
            });
            vcpu?;
            self.threads.extend(receiver.recv());
        }
        Ok(())
    }

    /// Runs or stops the vCPUs; they have done so when it returns.
    pub fn set_running(&self, run: bool) {
        let (running, changed) = &*self.running;
        *running.lock().unwrap_or_else(PoisonError::into_inner) = run;
        changed.notify_all();
    }

    /// The RAM's descriptor.
    pub fn ram(&self) -> &File {
        &self.ram
    }

    /// Flips a byte in the middle of RAM, well away from the mailbox.
    pub fn flip_byte(&self) -> io::Result<()> {
        self.flip_byte_at(self.bytes / 2)
    }

    /// Flips a byte below the RAM that guests fill.
    pub fn flip_low_byte(&self) -> io::Result<()> {
        self.flip_byte_at(0x600)
    }

    fn flip_byte_at(&self, address: u64) -> io::Result<()> {
        let mut byte = [0];
        self.ram.read_exact_at(&mut byte, address)?;
        self.ram.write_all_at(&[!byte[0]], address)
    }

    /// Reports that the guest lacks `what`.
    pub fn lack(&self, what: &str) {
        for (byte, value) in self.mailbox().unavailable.iter().zip(what.bytes()) {
            byte.store(value, Relaxed);
        }
    }

    /// Records damage, like a guest that took a page fault or panicked.
    pub fn damage(&self, kind: u32) {
        let damage = &self.mailbox().damage;
        damage.kind.store(kind, Relaxed);
        damage.vector.store(14, Relaxed);
        damage.error_code.store(2, Relaxed);
        damage.rip.store(0x10_1234, Relaxed);
        damage.address.store(0xdead_b000, Relaxed);
        if kind == damage_kind::PANIC {
            for (byte, value) in damage.text.iter().zip(*b"sweep.rs:7: generation went back") {
                byte.store(value, Relaxed);
            }
        }
        damage.state.store(damage_state::VALID, Release);
    }
}

fn beat(mailbox: &Mailbox, index: usize) {
    let cpu = &mailbox.cpus[index];
    let now = clock::tsc();
    // Another VMM may beat in the same mailbox, a moment later.
    let gap = now.saturating_sub(cpu.tsc.swap(now, Relaxed));
    let request = mailbox.gap_request.load(Acquire);
    if cpu.gap_ack.load(Relaxed) != request {
        cpu.gap.store(0, Relaxed);
        cpu.gap_ack.store(request, Release);
    } else if gap > cpu.gap.load(Relaxed) {
        cpu.gap_tsc.store(now, Relaxed);
        cpu.gap.store(gap, Relaxed);
    }
    let beats = cpu.heartbeat.fetch_add(1, Release);
    if index == 0 {
        mailbox.sweeps.store(beats / 20, Relaxed);
        mailbox.marker.store(mailbox.marker_go.load(Acquire) + 1, Release);
    }
}
