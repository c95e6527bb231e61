//! Tests of the parts of the guests' runtime that also run on the host.

use guest_images::mailbox;
use options::{End, Fault, Options, Ports, Ring, Word};
use timer_speed::{CALM, SCALE, Slow, Speed, WINDOW};
use timer_watch::Watch;
use usable::Range;
use words::{STEP, WORDS, Words};

#[path = "../runtime/options.rs"]
mod options;
#[path = "../runtime/timer_speed.rs"]
mod timer_speed;
#[path = "../runtime/timer_watch.rs"]
mod timer_watch;
#[path = "../runtime/usable.rs"]
mod usable;
#[path = "../runtime/words.rs"]
mod words;

/// One interrupt in time is enough, and a whole window at half speed is noticed.
#[test]
fn slow_timer_is_told_from_a_busy_host() {
    let mut speed = Speed::default();
    let mut judge = |took: u64, ran: u64, times: u64| {
        (0..times).try_for_each(|_| speed.judge(1000, took, Some(ran)))
    };
    assert_eq!(judge(1100, 1100, CALM), Ok(()));
    assert_eq!(judge(9000, 9000, WINDOW - 1), Ok(()));
    assert_eq!(judge(1500, 1500, 1), Ok(()));
    // The host has interrupted it in every period.
    assert_eq!(judge(2000, 1060, WINDOW), Ok(()));
    let slow = Slow { most: 1100 * SCALE / 1000 + SCALE / 2, took: 2 * SCALE };
    assert_eq!(judge(2000, 1064, WINDOW), Err(slow));
    assert_eq!(judge(2000, 2000, WINDOW), Err(slow));
    // One that the host has interrupted excuses no other.
    assert_eq!(judge(2000, 2000, WINDOW - 1), Ok(()));
    assert_eq!(judge(9000, 500, 1), Err(slow));
    // A halted vCPU does not tell how long it has run.
    assert_eq!((0..WINDOW).try_for_each(|_| speed.judge(1000, 2000, None)), Err(slow));
}

#[test]
fn only_executed_time_makes_an_interrupt_late() {
    const DUE: u64 = 50_000_000;
    let mut watch = Watch::new(0, DUE);
    let mut now = 0;
    let mut go_on = |watch: &mut Watch, step: u64, times: u64| {
        for _ in 0..times {
            now += step;
            watch.look(now, false);
        }
    };
    go_on(&mut watch, 10_000, 1000);
    // An update, and the host being busy.
    go_on(&mut watch, 20_000_000, 1);
    go_on(&mut watch, 3_000_000, 4);
    assert_eq!((watch.overdue(), watch.is_overdue(), watch.blackouts()), (0, false, 20_000_000));
    go_on(&mut watch, 10_000, 900);
    go_on(&mut watch, 3_000_000, 1);
    assert!(watch.is_overdue());
    assert_eq!((watch.overdue(), watch.blackouts()), (100 * 10_000, 20_000_000));
    // A second update of the same length.
    go_on(&mut watch, 18_000_000, 1);
    assert_eq!((watch.overdue(), watch.blackouts()), (100 * 10_000, 38_000_000));
    watch.look(1 << 40, true);
    assert_eq!(watch.overdue(), 100 * 10_000);
}

#[test]
fn gaps_are_time_in_which_the_vcpu_has_not_run() {
    let mut watch = Watch::new(0, 1 << 30);
    for now in [10_000, 20_000, 1_020_000, 1_030_000, 4_030_000] {
        watch.look(now, false);
    }
    assert_eq!(watch.descheduled(), 4_000_000);
}

#[test]
fn guests_fill_free_low_memory_and_all_above_the_image() {
    let parts = |start, bytes| usable::parts(start, bytes).collect::<Vec<_>>();
    let low = Range { start: 0x3_0000, end: 0x8_0000 };
    assert_eq!(parts(0, 64 << 20), [low, Range { start: 2 << 20, end: 64 << 20 }]);
    assert_eq!(parts(0, 0x9_fc00), [low]);
    assert_eq!(parts(1 << 20, 1 << 20), []);
    assert_eq!(
        parts(4 << 30, (1 << 20) + 1),
        [Range { start: 4 << 30, end: (4 << 30) + (1 << 20) }]
    );
    assert!(low.contains(0x3_0000) && !low.contains(guest_images::mailbox::MAILBOX_GPA));
}

#[test]
fn word_encodes_its_origin() {
    for seed in [0, 1, 42, u64::MAX] {
        let words = Words::new(seed);
        for page in [2 << 20, 4 << 30, (64 << 30) - 4096] {
            for generation in [1, 2, 300, 1 << 35] {
                let first = words.first(page, generation);
                for index in [0, 1, WORDS - 1] {
                    let word = first.wrapping_add(STEP.wrapping_mul(index as u64));
                    assert_eq!(words.origin(word, index), (page, generation));
                }
            }
        }
    }
}

#[test]
fn words_differ_between_pages_generations_and_seeds() {
    let first = Words::new(1).first(2 << 20, 1);
    assert_ne!(first, Words::new(1).first((2 << 20) + 4096, 1));
    assert_ne!(first, Words::new(1).first(2 << 20, 2));
    assert_ne!(first, Words::new(2).first(2 << 20, 1));
}

#[test]
fn empty_command_line_gives_the_defaults() {
    let defaults = Options {
        cpus: 1,
        seed: 1,
        ram: u64::MAX,
        markers: 0,
        end: End::Never,
        words: WORDS,
        every: 1,
        test: Word::EMPTY,
        fault: Fault::Undefined,
        ring: Ring::User,
        ports: Ports::Tss,
    };
    assert_eq!(Options::parse(b""), Ok(defaults));
    assert_eq!(Options::parse(b"console=ttyS0 quiet  = cpusN=3 pci=off"), Ok(defaults));
}

#[test]
fn parses_command_line() {
    let line =
        b" cpus=8 seed=18446744073709551615\tram=64M markers=3 end=reset fault=page test=x87 words=1 every=64 ring=0 ports=iopl ";
    assert_eq!(
        Options::parse(line),
        Ok(Options {
            cpus: 8,
            seed: u64::MAX,
            ram: 64 << 20,
            markers: 3,
            end: End::Reset,
            words: 1,
            every: 64,
            test: Word(*b"x87\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            fault: Fault::Page,
            ring: Ring::Kernel,
            ports: Ports::Iopl,
        })
    );
    assert_eq!(Options::parse(b"test=x87").expect("a word").test.as_str(), "x87");
    for (word, fault) in [
        ("divide", Fault::Divide),
        ("ud", Fault::Undefined),
        ("gp", Fault::Privileged),
        ("page", Fault::Page),
        ("panic", Fault::Panic),
        ("triple", Fault::Triple),
        ("hang", Fault::Hang),
    ] {
        let options = Options::parse(format!("fault={word}").as_bytes()).expect(word);
        assert_eq!(options.fault, fault);
    }
    assert_eq!(Options::parse(b"ram=1G end=exit end=never").expect("the last counts").ram, 1 << 30);
}

#[test]
fn error_of_a_bad_value_names_the_word() {
    for word in [
        "cpus=0",
        "cpus=9",
        "cpus=",
        "cpus=x",
        "seed=-1",
        "seed=99999999999999999999",
        "ram=",
        "ram=M",
        "ram=1T",
        "ram=99999999999G",
        "markers=4294967296",
        "end=now",
        "words=0",
        "words=513",
        "every=0",
        "every=4097",
        "test=longer-than-it-may",
        "fault=",
        "ring=1",
        "ports=all",
    ] {
        let error = Options::parse(word.as_bytes()).expect_err(word);
        let (name, _) = word.split_once('=').expect(word);
        assert!(error.contains(&format!("{name}=")), "{word}: {error}");
    }
}
