//! Checks that a well-formed scenario makes sense, and says where it does not.

mod alone;
mod mode;
mod order;

use super::case::Case;
use super::mistake::Mistake;
use super::step::{Repeat, Step};
use super::tree::Part;
use super::vm::Pages;

/// The largest number of vCPUs that a guest supports.
const MAX_CPUS: u32 = guest_images::mailbox::MAX_CPUS as u32;
/// The largest number of rounds of a `repeat`, all of which are kept in memory.
const MAX_ROUNDS: u32 = 100_000;

/// A mistake, and the path of what is wrong.
#[derive(Debug)]
pub struct Placed {
    /// The path from the root of the file.
    pub path: Vec<Part>,
    /// What is wrong there.
    pub mistake: Mistake,
}

/// Checks `case`, which does not come from a file.
pub fn check_made(case: &Case) -> Result<(), String> {
    let paths = vec![Vec::new(); case.steps.len()];
    let wrong: Vec<String> =
        check(case, &paths).iter().map(|placed| placed.mistake.to_string()).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}: {}", case.name, wrong.join("; "))) }
}

/// Returns all that is wrong in `case`, whose steps have these paths in the file.
pub fn check(case: &Case, paths: &[Vec<Part>]) -> Vec<Placed> {
    let mut wrong = of_the_case(case);
    for (step, path) in case.steps.iter().zip(paths) {
        let placed = |(rest, mistake): (Vec<Part>, Mistake)| Placed {
            path: [&**path, &rest].concat(),
            mistake,
        };
        wrong.extend(alone::check(&case.vm, step).into_iter().map(placed));
    }
    wrong.extend(order::check(case, paths));
    wrong
}

/// Returns each `repeat` in `steps` that must not be expanded.
pub fn repetitions(steps: &[Step]) -> Vec<Placed> {
    repetitions_in(steps, &[Part::Key("steps")], 1)
}

/// `outer` is how often the list as a whole is repeated.
fn repetitions_in(steps: &[Step], list: &[Part], outer: u32) -> Vec<Placed> {
    let mut wrong = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let Step::Repeat(Repeat { times, steps }) = step else { continue };
        let within = |key| [list, &[Part::Element(index), Part::Only, Part::Key(key)]].concat();
        let all = outer.saturating_mul(*times);
        if !(1..=MAX_ROUNDS).contains(&all) {
            let around = if outer > 1 { format!(" (here times {outer})") } else { String::new() };
            let mistake = Mistake::new(format!("`times`{around} must be 1 to {MAX_ROUNDS}"));
            wrong.push(Placed { path: within("times"), mistake });
            continue;
        }
        if steps.is_empty() {
            let mistake = Mistake::new("`steps` is empty: there is nothing to repeat");
            wrong.push(Placed { path: within("steps"), mistake });
        }
        wrong.extend(repetitions_in(steps, &within("steps"), all));
    }
    wrong
}

/// What is wrong outside of the steps.
fn of_the_case(case: &Case) -> Vec<Placed> {
    let mut wrong = Vec::new();
    let mut add = |path: &[Part], mistake| wrong.push(Placed { path: path.to_vec(), mistake });
    let vm = |key| [Part::Key("vm"), Part::Key(key)];
    let guests = guest_images::names();
    if !guests.contains(&case.vm.guest.as_str()) {
        add(&vm("guest"), Mistake::unknown("guest", &case.vm.guest, &guests));
    }
    if let Some(kernel) = &case.vm.kernel {
        if !case.vm.is_linux() {
            let wrong = format!("the guest `{}` has no kernel", case.vm.guest);
            add(&vm("kernel"), Mistake::new(wrong).label("only the guest `linux` has one"));
        } else if let Some(mistake) = alone::not_a_series(kernel) {
            add(&vm("kernel"), mistake);
        }
    }
    if !(1..=MAX_CPUS).contains(&case.vm.cpus) {
        let wrong = format!("`cpus` is {}: it must be 1 to {MAX_CPUS}", case.vm.cpus);
        add(&vm("cpus"), Mistake::new(wrong));
    }
    if case.vm.memory.0 < 2 << 20 {
        let wrong = format!("`memory` is {}: it must be 2M or more", case.vm.memory);
        add(&vm("memory"), Mistake::new(wrong));
    }
    if case.vm.memory_file && (!case.vm.share || case.vm.pages != Pages::Small) {
        let wrong = Mistake::new("RAM in a file is shared memory with 4 KiB pages");
        add(&vm("memory-file"), wrong.label("requires `share = true` and `pages = \"4k\"`"));
    }
    if case.deadline_ms == 0 {
        add(&[Part::Key("time-limit-ms")], no_time("time-limit-ms"));
    }
    wrong
}

/// The error that the time `key` is 0.
fn no_time(key: &str) -> Mistake {
    Mistake::new(format!("`{key}` must be 1 or more")).label("omit it for the default")
}
