//! Checks that a VM that continues in another process reports it everywhere in the same words.

use super::{Check, Scene};

/// The `reported` check.
pub const CHECK: Check = Check {
    name: "reported",
    claim: "event, standard error and service manager name the process in which the VM continues",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let Some(revival) = scene.handover.revival() else { return Ok(()) };
    let (pid, former, event) = (scene.pid(), revival.former.pid, &revival.event);
    if (event.pid, event.former_pid) != (pid, former) {
        return Err(format!(
            "the event says that the VM continues in process {} instead of {}; it continues in {pid} instead of {former}",
            event.pid, event.former_pid
        ));
    }
    if event.reason.trim().is_empty() || event.reason.lines().count() != 1 {
        return Err(format!("the event gives the reason {:?}, expected one line", event.reason));
    }
    let line =
        format!("process {former} ended ({}): the VM continues in process {pid}", event.reason);
    let lines = revival.console.lines().filter(|said| said.ends_with(&line)).count();
    if lines != 1 {
        return Err(format!("expected \"{line}\" once on standard error, found it {lines} times"));
    }
    let wanted = format!("MAINPID={pid}");
    if revival.notified.iter().flat_map(|message| message.lines()).any(|line| line == wanted) {
        return Ok(());
    }
    Err(format!("expected the message {wanted} to the service manager, got {:?}", revival.notified))
}
