//! What can happen to connections.

use std::sync::Arc;
use std::time::Duration;

use super::aim::{Aim, Fate};
use super::lost::LostAnswer;
use super::words::{Act, Words};

/// What happens to connections from now on. Those that are open are cut when this changes.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Everything passes.
    None,
    /// Connections are closed at once.
    Away,
    /// Requests are read and never answered.
    Hang,
    /// Every request gets this answer: status line, further header lines, body.
    Answer { status: &'static str, headers: &'static str, body: &'static str },
    /// Replies end after so many bytes, head included.
    CutReplyAfter(usize),
    /// One byte at this place of each connection's replies is changed.
    FlipReplyByteAt(usize),
    /// The server gets the whole request and does its work; the reply is thrown away and the connection cut.
    SwallowReply,
    /// Connections are cut once the client has sent so many bytes on one.
    CutRequestAfter(usize),
    /// Everything passes, replies late.
    Slow(Duration),
    /// A long line: every byte arrives this much later, each way, and a connection takes a round trip to begin. How many
    /// bytes pass at once is not limited.
    Delay(Duration),
    /// A narrow line: replies pass at so many bytes a second.
    Narrow(usize),
    /// Some requests have a fate of their own, all others pass.
    Aimed(Arc<Aim>),
    /// The same for requests with certain words.
    Words(Arc<Words>),
    /// The answer to one NATS request is lost with its connection.
    LoseAnswer(Arc<LostAnswer>),
    /// NATS requests that have this text are never answered; all else passes.
    Unanswered(&'static str),
}

impl Fault {
    /// For the next `times` requests with these words in their first line.
    pub fn aimed(words: impl Into<String>, times: u64, fate: Fate) -> Fault {
        Fault::Aimed(Arc::new(Aim::at_line(words.into(), times, fate)))
    }

    /// For every request with a header of this name, in lower case.
    pub fn aimed_at_header(name: impl Into<String>, fate: Fate) -> Fault {
        Fault::Aimed(Arc::new(Aim::at_header(name.into(), fate)))
    }

    /// For the next `times` requests that have all of these words.
    pub fn with_words(words: &[&str], times: u64, act: Act) -> Fault {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Fault::Words(Arc::new(Words::new(words, times, act)))
    }

    /// Holds requests with this text until the next fault is set, 25 s at most: that cuts their connections, and clients ask
    /// again. For what another process is to do meanwhile: the attempts of a client that is refused end after 8 s.
    pub fn holding(text: &str) -> Fault {
        Fault::with_words(&[text], u64::MAX, Act::Hold(Duration::from_secs(25)))
    }
}
