//! The states of a recipient between 250 and its disposition, and the steps that lead from one to another.
//!
//! The table in [`next`] is the only place that knows them. A step that the table does not hold changes nothing:
//! an answer that comes twice, or after an operator's act, cannot put a recipient into two places. Recording an
//! outcome is not done here; the shard does that when the queue says that a recipient is done.

/// How a recipient ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disposition {
    /// The next hop took it.
    Delivered,
    /// It failed for good.
    Bounced,
    /// Its time ran out.
    Expired,
    /// A rule of ours kept it from being sent.
    Suppressed,
    /// An operator ended it.
    Deleted,
}

/// Where a recipient is.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The router is to say where it goes.
    #[default]
    Unrouted,
    /// The router waits for DNS.
    Parked,
    /// Waits for its due time.
    Scheduled,
    /// In its site's list.
    Ready,
    /// In an attempt, here or lent to another shard.
    InFlight,
    /// An operator holds it, or it came to be held.
    Held,
    /// Ended.
    Done(Disposition),
}

impl State {
    /// How many states [`State::index`] tells apart.
    pub const COUNT: usize = 7;

    /// One of each, for tables; `Done` stands for all its dispositions.
    pub const ALL: [State; State::COUNT] = [
        State::Unrouted,
        State::Parked,
        State::Scheduled,
        State::Ready,
        State::InFlight,
        State::Held,
        State::Done(Disposition::Delivered),
    ];

    /// Its place in [`State::ALL`].
    pub const fn index(self) -> usize {
        match self {
            State::Unrouted => 0,
            State::Parked => 1,
            State::Scheduled => 2,
            State::Ready => 3,
            State::InFlight => 4,
            State::Held => 5,
            State::Done(_) => 6,
        }
    }

    /// Whether it has ended.
    pub const fn is_done(self) -> bool {
        matches!(self, State::Done(_))
    }

    /// The word for operators: "unrouted", "resolving", "scheduled", "ready", "in_flight", "held" or the disposition.
    pub const fn name(self) -> &'static str {
        match self {
            State::Unrouted => "unrouted",
            State::Parked => "resolving",
            State::Scheduled => "scheduled",
            State::Ready => "ready",
            State::InFlight => "in_flight",
            State::Held => "held",
            State::Done(Disposition::Delivered) => "delivered",
            State::Done(Disposition::Bounced) => "bounced",
            State::Done(Disposition::Expired) => "expired",
            State::Done(Disposition::Suppressed) => "suppressed",
            State::Done(Disposition::Deleted) => "deleted",
        }
    }
}

/// What can happen to a recipient.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The router named its site.
    Assign,
    /// The router must wait for DNS.
    Park,
    /// The router wants to be asked again.
    Unpark,
    /// An attempt takes it.
    Pick,
    /// The attempt was not made.
    Unpick,
    /// The attempt, or the routing, failed for now.
    Defer,
    /// Its due time came, or an operator wants an attempt now.
    Due,
    /// An operator holds it.
    Hold,
    /// An operator releases it.
    Release,
    /// It ends.
    Finish(Disposition),
}

impl Step {
    /// One of each, for tables.
    pub const ALL: [Step; 10] = [
        Step::Assign,
        Step::Park,
        Step::Unpark,
        Step::Pick,
        Step::Unpick,
        Step::Defer,
        Step::Due,
        Step::Hold,
        Step::Release,
        Step::Finish(Disposition::Delivered),
    ];
}

/// The state after a step, or none when the step does not apply.
pub const fn next(state: State, step: Step) -> Option<State> {
    match (state, step) {
        // Nothing follows an end.
        (State::Done(_), _) => None,
        // Whatever waits or is under way can end: the peer, the router, the sweep or an operator says so.
        (_, Step::Finish(disposition)) => Some(State::Done(disposition)),
        // The router may answer at once or after DNS.
        (State::Unrouted | State::Parked, Step::Assign) => Some(State::Ready),
        (State::Unrouted, Step::Park) => Some(State::Parked),
        (State::Parked, Step::Unpark) => Some(State::Unrouted),
        (State::Ready, Step::Pick) => Some(State::InFlight),
        (State::InFlight, Step::Unpick) => Some(State::Ready),
        // An attempt failed, DNS gave no answer, or its site is put off as a whole.
        (State::InFlight | State::Unrouted | State::Parked | State::Ready, Step::Defer) => Some(State::Scheduled),
        // A site may have changed meanwhile: it is routed again.
        (State::Scheduled, Step::Due) => Some(State::Unrouted),
        // An attempt under way is not taken back; the hold applies when it ends (see Queue::hold).
        (State::Unrouted | State::Parked | State::Scheduled | State::Ready, Step::Hold) => Some(State::Held),
        (State::Held, Step::Release) => Some(State::Unrouted),
        _ => None,
    }
}

/// The last reply about a recipient in 32 bits: its code and its enhanced code (RFC 3463).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct LastReply(u32);

impl LastReply {
    /// No reply yet.
    pub const NONE: LastReply = LastReply(0);

    /// Packs them: 10 bits of code, 2 bits of class, 10 bits each of subject and detail. An enhanced code that
    /// RFC 3463 section 2 does not allow (a class other than 2, 4, 5; a number above 999) is left out.
    pub const fn new(code: u16, enhanced: Option<(u8, u16, u16)>) -> LastReply {
        let code = if code > 999 { 0 } else { code as u32 };
        let packed = match enhanced {
            Some((class @ (2 | 4 | 5), subject, detail)) if subject <= 999 && detail <= 999 => {
                let class = if class == 2 { 1 } else { class as u32 - 2 };
                class << 20 | (subject as u32) << 10 | detail as u32
            }
            _ => 0,
        };
        LastReply(code << 22 | packed)
    }

    /// The three digits, if there was a reply.
    pub const fn code(self) -> Option<u16> {
        match (self.0 >> 22) as u16 {
            0 => None,
            code => Some(code),
        }
    }

    /// Class, subject and detail, if the reply had them.
    pub const fn enhanced(self) -> Option<(u8, u16, u16)> {
        let class = match self.0 >> 20 & 3 {
            0 => return None,
            1 => 2,
            other => other as u8 + 2,
        };
        Some((class, (self.0 >> 10 & 0x3ff) as u16, (self.0 & 0x3ff) as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows are states, columns are steps, both in the order of their `ALL`:
    /// assign park unpark pick unpick defer due hold release finish. A letter is the state that follows.
    const TABLE: [(&str, &str); State::COUNT] = [
        ("unrouted", "RP...S.H.D"),
        ("resolving", "R.U..S.H.D"),
        ("scheduled", "......UH.D"),
        ("ready", "...F.S.H.D"),
        ("in_flight", "....RS...D"),
        ("held", "........UD"),
        ("delivered", ".........."),
    ];

    #[test]
    fn every_state_meets_every_step() {
        let letter = |state: State| ['U', 'P', 'S', 'R', 'F', 'H', 'D'][state.index()];
        for (state, (name, row)) in State::ALL.into_iter().zip(TABLE) {
            assert_eq!(state.name(), name);
            let found: String = Step::ALL.into_iter().map(|step| next(state, step).map_or('.', letter)).collect();
            assert_eq!(found, row, "from {name}");
        }
    }

    #[test]
    fn an_end_keeps_its_disposition_and_is_final() {
        use Disposition::*;
        for disposition in [Delivered, Bounced, Expired, Suppressed, Deleted] {
            assert_eq!(next(State::InFlight, Step::Finish(disposition)), Some(State::Done(disposition)));
            for step in Step::ALL {
                assert_eq!(next(State::Done(disposition), step), None);
            }
        }
    }

    #[test]
    fn all_states_have_their_own_place() {
        for (place, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state.index(), place);
        }
        assert_eq!(size_of::<State>(), 1);
    }

    #[test]
    fn replies_pack_and_unpack() {
        for class in [2, 4, 5] {
            let reply = LastReply::new(451, Some((class, 7, 999)));
            assert_eq!((reply.code(), reply.enhanced()), (Some(451), Some((class, 7, 999))));
        }
        assert_eq!(LastReply::new(250, None).enhanced(), None);
        assert_eq!(LastReply::new(550, Some((5, 1_000, 1))), LastReply::new(550, None));
        assert_eq!(LastReply::new(550, Some((3, 0, 0))).enhanced(), None);
        assert_eq!(LastReply::NONE.code(), None);
    }
}
