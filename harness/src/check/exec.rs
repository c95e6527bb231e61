//! Checks that an update executed the requested command, and that a refused update executed
//! nothing.
//!
//! Neither the executable's file nor the events prove it: a VMM that only pretends to execute keeps
//! its auxiliary vector and its old command line.

use super::{Action, Check, Ending, Scene, outcome};
use crate::check::expected::Moment;
use crate::observe::image::Image;

/// The `exec` check.
pub const CHECK: Check = Check {
    name: "exec",
    claim: "an update by exec executes exactly the command that was given, any other nothing",
    run,
};

/// The option that arms a fail point.
const FAIL_POINT: &str = "--failpoint";

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let Some(before) = scene.before.filter(|_| scene.handover.revival().is_none()) else {
        return Ok(());
    };
    let (was, is) = (&before.image, &scene.after.image);
    if let Some(transfer) = scene.handover.transfer() {
        as_before(was, &transfer.image, false).map_err(|why| format!("the former VMM: {why}"))?;
        return started(is, scene.arguments);
    }
    if let Action::Update { mode, .. } = scene.action
        && mode.moves()
    {
        return as_before(was, is, false);
    }
    if let Some(Ending::Refused(_)) = scene.action.ending() {
        // A VMM that crashed while it checked whether it can update has executed itself again.
        let crashed = Moment::of(scene.action, scene.handover) == Moment::Failed;
        return as_before(was, is, crashed);
    }
    // The check `outcome` reports an update that must not have succeeded.
    if !scene.action.updated() || (outcome::CHECK.run)(scene).is_err() {
        return Ok(());
    }
    executed(was, is, scene.arguments)
}

fn as_before(was: &Image, is: &Image, crashed: bool) -> Result<(), String> {
    let own = |image: &Image| without_fail_points(&image.words);
    if own(was) != own(is) {
        return Err(format!("something was executed: {:?}", is.words));
    }
    // Equal vectors prove nothing where addresses are not random.
    if !crashed && was.auxv != is.auxv {
        return Err("the VMM was executed again although it had not crashed".into());
    }
    Ok(())
}

/// `words` without the fail points, which a fallback drops so that it does not fail again.
fn without_fail_points(words: &[String]) -> Vec<String> {
    let mut words = words.iter();
    let mut left = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            FAIL_POINT => drop(words.next()),
            _ => left.push(word.clone()),
        }
    }
    left
}

fn executed(was: &Image, is: &Image, asked: &[String]) -> Result<(), String> {
    // Each process image has the addresses of its own stack.
    if was.random && is.random && was.auxv == is.auxv {
        return Err("nothing was executed: the auxiliary vector is unchanged".into());
    }
    started(is, asked)
}

/// Checks that a process runs a program with the arguments `asked`.
fn started(is: &Image, asked: &[String]) -> Result<(), String> {
    // The words before are the program, or the loader and the program if a wrapper calls it.
    if is.words.len() > asked.len() && is.words.ends_with(asked) && !asked.is_empty() {
        return Ok(());
    }
    Err(format!("the command line is {:?}, and {asked:?} was asked for", is.words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn image(words: &[&str], auxv: u8) -> Image {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Image { words, auxv: vec![auxv], random: true }
    }

    #[rstest]
    #[case(&["vmm", "--incoming", "state-2"], 2, None)]
    #[case(&["other-name", "--incoming", "state-2"], 2, None)]
    #[case(&["vmm", "--incoming", "state-2"], 1, Some("nothing was executed"))]
    #[case(&["vmm", "--incoming", "state-1"], 2, Some("was asked for"))]
    #[case(&["vmm"], 2, Some("was asked for"))]
    #[case(&["ld.so", "vmm", "--incoming", "state-2"], 2, None)]
    #[case(&["--incoming", "state-2"], 2, Some("was asked for"))]
    #[case(&[], 2, Some("was asked for"))]
    fn executes_the_requested_command(
        #[case] words: &[&str],
        #[case] auxv: u8,
        #[case] complaint: Option<&str>,
    ) {
        let was = image(&["vmm", "--incoming", "state-1"], 1);
        let asked = ["--incoming", "state-2"].map(str::to_owned);
        match (executed(&was, &image(words, auxv), &asked), complaint) {
            (Ok(()), None) => {}
            (Err(result), Some(complaint)) => assert!(result.contains(complaint), "{result}"),
            (result, _) => panic!("{result:?}"),
        }
    }

    #[rstest]
    #[case(&["vmm", "a"], 1, false, true)]
    #[case(&["vmm", "a"], 2, false, false)]
    #[case(&["vmm", "a"], 2, true, true)]
    #[case(&["vmm", "--failpoint", "save=panic", "a"], 2, true, true)]
    #[case(&["vmm", "b"], 2, true, false)]
    #[case(&["vmm", "b"], 1, false, false)]
    #[case(&["vmm", "a", "--failpoint"], 2, true, true)]
    fn a_refused_update_executes_only_a_crashed_vmm_again(
        #[case] words: &[&str],
        #[case] auxv: u8,
        #[case] crashed: bool,
        #[case] good: bool,
    ) {
        let kept = as_before(&image(&["vmm", "a"], 1), &image(words, auxv), crashed);
        assert_eq!(kept.is_ok(), good, "{kept:?}");
    }

    #[test]
    fn without_random_addresses_only_the_command_line_is_compared() {
        let fixed = |words| Image { random: false, ..image(words, 1) };
        let asked = ["--incoming", "state-2"].map(str::to_owned);
        assert_eq!(
            executed(&fixed(&["vmm"]), &fixed(&["vmm", "--incoming", "state-2"]), &asked),
            Ok(())
        );
    }
}
