//! Planted bugs in what an update hands over besides the saved state: the CPR state and the
//! descriptors.

use std::borrow::Cow;
use std::os::fd::{BorrowedFd, OwnedFd};

use ciborium::Value;

use super::{Planted, planted};

/// The name of the VM's descriptor, which must not cross exec.
const VM: &str = "kvm.vm";
/// No descriptor has this ID.
const NO_ID: u32 = u32::MAX;

/// Makes the planted mistakes in the encoded CPR state.
pub(in super::super) fn change_state(body: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let body = change_field(body, Planted::AlwaysResume, "run_state", "running".into());
    change_field(body, Planted::ForgetEvents, "pending_events", Value::Array(Vec::new()))
}

fn change_field<'a>(body: Cow<'a, [u8]>, bug: Planted, name: &str, wrong: Value) -> Cow<'a, [u8]> {
    if !planted(bug) {
        return body;
    }
    // Only a damaged state cannot be decoded; its reader refuses it.
    let Ok(mut state) = ciborium::from_reader::<Value, _>(&*body) else { return body };
    let fields = state.as_map_mut().expect("a state is a map");
    let field = fields.iter_mut().find(|(key, _)| key.as_text() == Some(name));
    field.unwrap_or_else(|| panic!("the CPR state has no field {name}")).1 = wrong;
    let mut changed = Vec::new();
    ciborium::into_writer(&state, &mut changed).expect("writing to memory cannot fail");
    changed.into()
}

/// Returns the descriptor that is handed over by mistake.
pub(in super::super) fn hand_over_too<'a>(
    vm: Option<BorrowedFd<'a>>,
) -> Option<(&'static str, BorrowedFd<'a>)> {
    vm.filter(|_| planted(Planted::StaleVm)).map(|vm| (VM, vm))
}

/// Makes the planted mistakes in the descriptors, by name and ID. None is closed: a fallback needs
/// them.
pub(in super::super) fn change_descriptors(
    mut fds: Vec<(String, u32, OwnedFd)>,
) -> Vec<(String, u32, OwnedFd)> {
    if planted(Planted::StaleVm)
        && let Some(at) = fds.iter().position(|(name, ..)| name == VM)
    {
        std::mem::forget(fds.remove(at));
    }
    if planted(Planted::ZeroIsAbsent) {
        fds.iter_mut().filter(|(_, id, _)| *id == 0).for_each(|(_, id, _)| *id = NO_ID);
    }
    if planted(Planted::ByOrder) && !fds.is_empty() {
        let (names, mut fds): (Vec<_>, Vec<_>) =
            fds.into_iter().map(|(name, id, fd)| ((name, id), fd)).unzip();
        fds.rotate_left(1);
        return names.into_iter().zip(fds).map(|((name, id), fd)| (name, id, fd)).collect();
    }
    fds
}
