//! Inputs made of others: small changes drawn from a seed, so that a run can be played again.

/// The longest input.
pub const MAX_BYTES: usize = 4096;

/// Numbers at which code goes wrong, as they are in messages.
const NUMBERS: [i64; 10] = [0, 1, -1, 127, 128, 1 << 16, 1 << 32, i64::MAX, i64::MIN, i64::MAX - 1];
/// Texts that parsers know.
const WORDS: [&str; 16] = [
    "null",
    "[]",
    "{}",
    "\"",
    "\\ud800",
    "[[[[[[[[",
    "1e999",
    "9223372036854775807",
    "-1",
    "../",
    "//",
    "\u{0}",
    "\r\n\r\n",
    "data: ",
    "ä",
    "acme/",
];

/// Random numbers (`SplitMix64`).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The numbers that follow from a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next one.
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`; 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("64 bits").max(1);
        usize::try_from(self.draw() % end).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.draw().to_le_bytes()[0]
    }
}

/// One of the inputs, changed in one to eight places.
pub fn mutate(inputs: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = inputs.get(rng.below(inputs.len())).cloned().unwrap_or_default();
    for _ in 0..=rng.below(8) {
        change(&mut bytes, inputs, rng);
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn change(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.below(bytes.len() + 1);
    let end = at + rng.below(bytes.len() - at + 1);
    match rng.below(8) {
        0 => {
            bytes.drain(at..end);
        }
        1 => {
            let twice = bytes[at..end].to_vec();
            bytes.splice(at..at, twice);
        }
        2 => bytes.insert(at, rng.byte()),
        3 => {
            let number = NUMBERS[rng.below(NUMBERS.len())].to_le_bytes();
            let end = bytes.len().min(at + 8);
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        4 => {
            let word = WORDS[rng.below(WORDS.len())];
            bytes.splice(at..at, word.bytes());
        }
        5 if !inputs.is_empty() => {
            let other = &inputs[rng.below(inputs.len())];
            let from = rng.below(other.len() + 1);
            let to = from + rng.below(other.len() - from + 1);
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        6 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.byte();
            }
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
    }
}
