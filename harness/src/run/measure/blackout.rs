//! The blackout of an update as the guest saw it: the largest gap between two heartbeats.

use std::time::Duration;

use crate::observe::mailbox::MailboxPage;
use crate::observe::poll::{self, Deadline};

/// A measurement in progress.
pub struct Measurement {
    request: u32,
    /// What the guest had seen when the update was over, if it was watched until then.
    seen: Option<Duration>,
}

impl Measurement {
    /// Makes every vCPU reset its largest gap. Returns `None` if one of them does not do so within
    /// `limit`: the blackout then cannot be measured.
    pub fn begin(page: &MailboxPage, limit: Duration) -> Option<Self> {
        let view = page.read().ok().filter(|view| view.ready)?;
        let request = view.gap_request.wrapping_add(1);
        page.request_gap(request).ok()?;
        poll::until(Deadline::after(limit), || {
            let view = page.read().ok()?;
            let all = view.online().all(|(_, cpu)| cpu.gap_ack == request);
            (all && view.online().next().is_some()).then_some(())
        })?;
        Some(Self { request, seen: None })
    }

    /// Ends the measurement with `seen`; gaps that the guest sees later do not count.
    pub fn ended(self, seen: Duration) -> Self {
        Self { seen: Some(seen), ..self }
    }

    /// Returns the largest gap of any vCPU since the start. Call it after every vCPU has beaten
    /// again.
    pub fn end(&self, page: &MailboxPage) -> Option<Duration> {
        if self.seen.is_some() {
            return self.seen;
        }
        page.read().ok().filter(|view| view.gap_request == self.request)?.largest_gap()
    }
}
