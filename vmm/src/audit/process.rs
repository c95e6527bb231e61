//! Attributes of the process that only the process itself can query. Source: prctl(2).

use std::ffi::{c_int, c_ulong};

use super::Values;

/// Options that return a value.
const RETURNED: [(&str, c_int); 7] = [
    ("dumpable", libc::PR_GET_DUMPABLE),
    ("keep-capabilities", libc::PR_GET_KEEPCAPS),
    ("secure-bits", libc::PR_GET_SECUREBITS),
    ("no-huge-pages", libc::PR_GET_THP_DISABLE),
    ("memory-failure-policy", libc::PR_MCE_KILL_GET),
    ("timer-slack", libc::PR_GET_TIMERSLACK),
    ("no-new-privileges", libc::PR_GET_NO_NEW_PRIVS),
];
/// Options that write an `int`.
const WRITTEN: [(&str, c_int); 3] = [
    ("signal-at-parents-death", libc::PR_GET_PDEATHSIG),
    ("child-subreaper", libc::PR_GET_CHILD_SUBREAPER),
    ("time-stamp-counter", libc::PR_GET_TSC),
];

/// Reads the attributes of the calling thread and its process.
pub(super) fn read(values: &mut Values) {
    let none: c_ulong = 0;
    for (name, option) in RETURNED {
        // SAFETY: numbers only.
        let value = unsafe { libc::prctl(option, none, none, none, none) };
        values.note(format!("process.{name}"), value);
    }
    for (name, option) in WRITTEN {
        let mut value: c_int = -1;
        // SAFETY: each writes an `int` to its second argument.
        unsafe { libc::prctl(option, &raw mut value, none, none, none) };
        values.note(format!("process.{name}"), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_known() {
        let mut values = Values::default();
        read(&mut values);
        let unknown: Vec<_> = values.into_iter().filter(|(_, value)| value == "-1").collect();
        assert_eq!(unknown, []);
    }
}
