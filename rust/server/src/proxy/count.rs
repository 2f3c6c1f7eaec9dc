//! How many tokens a text has: exactly where the rate card names an encoding that is built in,
//! otherwise an estimate that says so.

use bpe_openai::Tokenizer;

use crate::engine::Engine;
use crate::prompt::Prompt;
use crate::tokens;

/// The longest end of a text that is counted again with what follows.
const TAIL_BYTES: usize = 1_024;

/// The encoding that counts a model's tokens.
#[derive(Clone, Copy)]
pub(crate) struct Encoding {
    tokenizer: &'static Tokenizer,
    /// Whether it is the model's own.
    pub(crate) exact: bool,
}

impl Encoding {
    pub(crate) fn of(engine: &Engine, model: &str) -> Encoding {
        let known = tokens::encoding(engine.rates.tokenizer(model).unwrap_or(model));
        match known {
            Some((_, tokenizer)) => Encoding { tokenizer, exact: true },
            None => Encoding { tokenizer: bpe_openai::o200k_base(), exact: false },
        }
    }

    /// The tokens of a prompt. Chat templates and tools are known to providers only, so this is an
    /// estimate, on the large side where even the encoding is another.
    pub(crate) fn prompt(self, prompt: &Prompt) -> i64 {
        let texts: usize =
            prompt.texts.iter().map(|text| self.tokenizer.count(text.as_str())).sum();
        let texts = whole(texts);
        let texts = if self.exact { texts } else { texts.saturating_add(texts / 4) };
        texts.saturating_add(prompt.beside())
    }
}

/// Counts a text that comes in parts, in time that is linear in it.
pub(crate) struct Growing {
    tokenizer: &'static Tokenizer,
    /// Tokens that no more text can change.
    settled: i64,
    tail: String,
    /// Tokens of the tail as it is.
    of_tail: i64,
}

impl Growing {
    pub(crate) fn new(encoding: Encoding) -> Growing {
        Growing { tokenizer: encoding.tokenizer, settled: 0, tail: String::new(), of_tail: 0 }
    }

    /// Counts all but the last two words for good: what follows can change no more than those.
    pub(crate) fn push(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.tail.push_str(text);
        let (mut end, mut settled) = (0, 0);
        let mut last = [(0, 0); 2];
        for word in self.tokenizer.split(&self.tail) {
            let counted = (word.len(), whole(self.tokenizer.bpe.count(word.as_bytes())));
            end += last[0].0;
            settled += last[0].1;
            last = [last[1], counted];
        }
        self.of_tail = last[0].1 + last[1].1;
        if self.tail.len() - end > TAIL_BYTES {
            // A word without end is cut: the count may be a little too high.
            end = self.tail.len();
            settled += std::mem::take(&mut self.of_tail);
        }
        self.settled += settled;
        self.tail.drain(..end);
    }

    /// Forgets what it has counted.
    pub(crate) fn reset(&mut self) {
        (self.settled, self.of_tail) = (0, 0);
        self.tail.clear();
    }

    pub(crate) fn count(&self) -> i64 {
        self.settled + self.of_tail
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn growing(parts: &[&str]) -> i64 {
        let tokenizer = bpe_openai::o200k_base();
        let mut growing = Growing::new(Encoding { tokenizer, exact: true });
        for part in parts {
            growing.push(part);
            assert!(growing.tail.len() <= TAIL_BYTES * 2 + part.len());
        }
        growing.count()
    }

    proptest! {
        #[test]
        fn parts_have_as_many_tokens_as_the_whole(
            parts in prop::collection::vec("[a-zA-Z0-9 .,'\n\täß漢🙂-]{0,12}", 0..40),
        ) {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let whole = whole(bpe_openai::o200k_base().count(parts.concat().as_str()));
            prop_assert_eq!(growing(&parts), whole);
        }
    }

    #[test]
    fn a_word_without_end_is_counted_in_bounded_memory_and_nearly_right() {
        let parts = vec!["abcdefgh"; 5_000];
        let exact = whole(bpe_openai::o200k_base().count(parts.concat().as_str()));
        let counted = growing(&parts);
        assert!((exact..=exact + exact / 50).contains(&counted), "{counted} for {exact}");
    }
}
