//! The blackout of an update as the guest saw it: the largest gap between two heartbeats.

use std::time::Duration;

use crate::observe::mailbox::MailboxPage;
use crate::observe::poll::{self, Deadline};

/// A measurement that has begun.
pub struct Measurement {
    request: u32,
    /// What the guest had seen when the update was over, if somebody has watched.
    seen: Option<Duration>,
}

impl Measurement {
    /// Makes every vCPU forget its largest gap. None if one of them does not within `limit`: then
    /// nothing can be said.
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

    /// It has ended with this: what the guest sees later does not count.
    pub fn ended(self, seen: Duration) -> Self {
        Self { seen: Some(seen), ..self }
    }

    /// The largest gap of any vCPU since; every vCPU must have beaten again.
    pub fn end(&self, page: &MailboxPage) -> Option<Duration> {
        if self.seen.is_some() {
            return self.seen;
        }
        page.read().ok().filter(|view| view.gap_request == self.request)?.largest_gap()
    }
}
