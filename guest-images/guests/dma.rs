//! Has a device write to RAM, in many small requests of the entropy device (virtio).
//!
//! `test=` selects the transport: plain, event (notifications by index), indirect (descriptors in
//! tables), both, intx (an interrupt line instead of messages). vCPU 0 uses the device. Each request
//! must be completed once, with an interrupt, and nothing beside its buffers may change; what the
//! device has written to pages that the guest only reads must stay. Marker n comes after 10 n rounds,
//! with requests in flight.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::sync::atomic::Ordering::Relaxed;

use runtime::arch::{pause, rdtsc};
use runtime::damage::{self, unavailable, verify};
use runtime::interrupts::{self, Eoi};
use runtime::ioapic::{self, Trigger};
use runtime::lock::Lock;
use runtime::virtio::{
    Completed, Descriptor, Device, EVENT_INDEX, INDIRECT, PARTS, REQUESTS, WRITE,
};
use runtime::{Cpu, cpl0, lapic, mailbox};

const ROUNDS_PER_MARKER: u32 = 10;
const ROUNDS_PER_SWEEP: u32 = 10;
/// The entropy device.
const ENTROPY: u32 = 4;
/// The interrupts of the device: one for its configuration, one for its queue.
const VECTOR: u8 = 0x51;
const QUEUE_VECTOR: u8 = VECTOR + 1;

/// Bytes of a request's memory: buffers with untouched bytes around them.
const AREA: usize = 512;
/// What is in it before.
const UNTOUCHED: u8 = 0x5a;
/// Bytes after which random ones are all alike only once in the age of the universe.
const SURELY_RANDOM: usize = 16;

/// TSC ticks after which a request counts as lost: about five seconds.
const PATIENCE: u64 = 15 << 30;
/// TSC ticks that one check counts at most, so that a stopped guest does not time out.
const ONE_LOOK: u64 = 1 << 24;

#[repr(C, align(64))]
struct Areas([[u8; AREA]; REQUESTS]);

/// The memory of the requests; the device writes there.
static mut AREAS: Areas = Areas([[0; AREA]; REQUESTS]);

const PAGE: usize = 4096;
/// Pages that only the device writes.
const KEPT: usize = 16;

#[repr(C, align(4096))]
struct Kept([[u8; PAGE]; KEPT]);

/// Pages that the guest never writes, so that only the VMM knows that they have changed.
static mut KEPT_PAGES: Kept = Kept([[0; PAGE]; KEPT]);

/// The device that vCPU 0 has found.
static DEVICE: Lock<Option<Device>> = Lock::new(None);

fn prepare(cpu: &mut Cpu) {
    if cpu.index() > 0 {
        return;
    }
    let lines = cpu.wants_only("intx");
    let wanted = match cpu.options().test.as_str() {
        "" | "plain" | "intx" => 0,
        "event" => EVENT_INDEX,
        "indirect" => INDIRECT,
        "both" => EVENT_INDEX | INDIRECT,
        other => panic!("test={other} is none of this guest's"),
    };
    let device = Device::open(ENTROPY, wanted, (!lines).then_some(VECTOR));
    let missing = match device {
        Ok(device) if lines && device.line() == 0 => {
            "an interrupt line of the device: no firmware has routed it"
        }
        Ok(device) if device.features() & wanted == wanted => {
            return DEVICE.with(cpu, |place, _| *place = Some(device));
        }
        Ok(_) => "a feature of the device",
        Err(what) => what,
    };
    unavailable(format_args!("{missing}"));
}

fn run(cpu: &mut Cpu) -> ! {
    if cpu.index() > 0 {
        cpu.tick_until(|| false);
    }
    let mut device = None;
    DEVICE.with(cpu, |place, _| device = place.take());
    let device = device.expect("the body runs only if nothing is missing");
    let mut guest = Guest::new(device, cpu.wants_only("intx"), cpu);
    let markers = cpu.options().markers;
    let mut round = 0_u32;
    loop {
        round = round.wrapping_add(1);
        let marker = round / ROUNDS_PER_MARKER;
        let at_marker = round.is_multiple_of(ROUNDS_PER_MARKER) && (1..=markers).contains(&marker);
        guest.submit_some();
        if at_marker {
            cpu.marker(marker);
        }
        guest.collect(cpu);
        guest.verify_device();
        mailbox().sweeps.store((round / ROUNDS_PER_SWEEP).into(), Relaxed);
        if at_marker && marker == markers {
            cpu.end();
        }
        cpu.tick();
    }
}

/// A request in flight: its buffers as offsets and lengths.
#[derive(Clone, Copy)]
struct Request {
    parts: [(usize, usize); PARTS],
    count: usize,
}

fn kept(index: usize) -> *const [u8; PAGE] {
    // SAFETY: only an address is computed; `index` is in range.
    unsafe { (&raw const KEPT_PAGES.0).cast::<[u8; PAGE]>().add(index) }
}

/// FNV-1a over the words of a kept page.
fn checksum(index: usize) -> u64 {
    let words = kept(index).cast::<u64>();
    (0..PAGE / 8).fold(0xcbf2_9ce4_8422_2325, |sum, at| {
        // SAFETY: the page is aligned and has that many words, and no request for it is in flight.
        let word = unsafe { words.add(at).read_volatile() };
        (sum ^ word).wrapping_mul(0x0100_0000_01b3)
    })
}

struct Guest {
    device: Device,
    /// The device uses its interrupt line.
    lines: bool,
    requests: [Option<Request>; REQUESTS],
    /// The request for a kept page.
    last: usize,
    /// Checksums of the kept pages.
    checksums: [u64; KEPT],
    /// The kept page that a request in flight is for.
    filling: Option<usize>,
    /// Interrupts that were looked at.
    seen: u64,
    random: u64,
}

impl Guest {
    fn new(device: Device, lines: bool, cpu: &mut Cpu) -> Self {
        if lines {
            ioapic::route(device.line(), QUEUE_VECTOR, Trigger::Level, 0);
        }
        interrupts::expect(VECTOR, Eoi::Lapic);
        interrupts::expect(QUEUE_VECTOR, if lines { Eoi::Body } else { Eoi::Lapic });
        let mut checksums = [0; KEPT];
        for (index, sum) in checksums.iter_mut().enumerate() {
            *sum = checksum(index);
        }
        let random = cpu.options().seed | 1;
        let (requests, last) = ([None; REQUESTS], device.requests() - 1);
        Self { device, lines, requests, last, checksums, filling: None, seen: 0, random }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as usize % below
    }

    fn area(id: usize) -> *mut [u8; AREA] {
        // SAFETY: only an address is computed; `id` is in range.
        unsafe { (&raw mut AREAS.0).cast::<[u8; AREA]>().add(id) }
    }

    /// Submits one to all of the requests that fit, and notifies the device of all at once or of
    /// each.
    fn submit_some(&mut self) {
        let (count, each) = (1 + self.random(self.last), self.random(2) == 0);
        for id in 0..count {
            let mut request = Request { parts: [(0, 0); PARTS], count: 1 + self.random(PARTS) };
            let mut parts = [Descriptor::new(0, 0, 0); PARTS];
            let mut at = 0;
            for index in 0..request.count {
                at += 1 + self.random(24);
                let length = 1 + self.random(96);
                request.parts[index] = (at, length);
                parts[index] = Descriptor::new(Self::area(id).addr() + at, length as u32, WRITE);
                at += length;
            }
            // SAFETY: the device has completed the last request with this memory.
            unsafe { Self::area(id).write_volatile([UNTOUCHED; AREA]) };
            self.requests[id] = Some(request);
            self.device.submit(id, &parts[..request.count]);
            if each {
                self.device.notify();
            }
        }
        self.fill_a_page();
        self.device.notify();
    }

    /// Has the device write to a part of a kept page.
    fn fill_a_page(&mut self) {
        let index = self.random(KEPT);
        self.verify_kept(index);
        let (start, length) = (self.random(PAGE / 2), 1 + self.random(PAGE / 2));
        let buffer = Descriptor::new(kept(index).addr() + start, length as u32, WRITE);
        let mut request = Request { parts: [(0, 0); PARTS], count: 1 };
        request.parts[0] = (start, length);
        (self.requests[self.last], self.filling) = (Some(request), Some(index));
        self.device.submit(self.last, &[buffer]);
    }

    fn verify_kept(&self, index: usize) {
        let (expected, found) = (self.checksums[index], checksum(index));
        verify(expected, found, format_args!("checksum of page {index} that the device wrote"));
    }

    /// Takes completed requests until none is in flight. Between two looks at the queue there must
    /// be an interrupt.
    fn collect(&mut self, cpu: &mut Cpu) {
        cpl0::interrupts_on();
        loop {
            self.device.ask_for_interrupt();
            while let Some(completed) = self.device.take() {
                self.verify(completed);
            }
            if self.device.in_flight() == 0 {
                break;
            }
            self.device.ask_for_interrupt();
            if self.device.used_index() == self.device.counts()[0] {
                self.wait(cpu);
            }
        }
        cpl0::interrupts_off();
        let left = self.requests.iter().flatten().count() as u64;
        verify(0, left, format_args!("requests that the queue does not show"));
    }

    fn wait(&mut self, cpu: &mut Cpu) {
        let mut waited = 0;
        let mut last = rdtsc();
        while interrupts::count(QUEUE_VECTOR) == self.seen {
            let now = rdtsc();
            waited += (now - last).min(ONE_LOOK);
            last = now;
            if waited > PATIENCE {
                let [taken, submitted] = self.device.counts();
                match self.device.used_index() == taken {
                    true => damage::wrong(
                        submitted.into(),
                        taken.into(),
                        format_args!("requests completed: one is lost"),
                    ),
                    false => damage::wrong(
                        self.seen + 1,
                        self.seen,
                        format_args!("interrupts of the device: one is lost"),
                    ),
                }
            }
            pause();
            cpu.tick();
        }
        self.seen = interrupts::count(QUEUE_VECTOR);
        if self.lines {
            // In this order, or the line would interrupt once more.
            self.device.take_isr();
            lapic::end_of_interrupt();
        }
    }

    fn verify(&mut self, Completed { id, written }: Completed) {
        let request = self.requests.get_mut(id as usize).and_then(Option::take);
        let Some(Request { parts, count }) = request else {
            damage::wrong(0, id.into(), format_args!("request completed that is not in flight"))
        };
        let parts = &parts[..count];
        let expected: usize = parts.iter().map(|(_, length)| length).sum();
        verify(expected as u64, written.into(), format_args!("bytes of a request"));
        if id as usize == self.last {
            if let Some(index) = self.filling.take() {
                self.checksums[index] = checksum(index);
            }
            return;
        }
        // SAFETY: the device has completed the request.
        let area = unsafe { Self::area(id as usize).read_volatile() };
        let inside = |at| parts.iter().any(|(start, length)| (*start..start + length).contains(&at));
        for (at, byte) in area.iter().enumerate() {
            if !inside(at) {
                let untouched = UNTOUCHED.into();
                verify(untouched, (*byte).into(), format_args!("byte {at} beside the buffers"));
            }
        }
        for (start, length) in parts.iter().filter(|(_, length)| *length >= SURELY_RANDOM) {
            let bytes = &area[*start..start + length];
            let same = bytes.iter().all(|byte| *byte == bytes[0]);
            verify(0, same.into(), format_args!("buffer that the device has not filled"));
        }
    }

    fn verify_device(&self) {
        let status = self.device.status();
        verify(Device::IN_USE.into(), status.into(), format_args!("device status"));
        let chosen = self.device.chosen();
        verify(self.device.features(), chosen, format_args!("features of the device"));
    }
}
