//! Exact token counts, by the tokenizers that are built in.

use bpe_openai::Tokenizer;

use crate::error::ApiError;
use crate::v1::ErrorReason;

/// The longest text that is counted, in bytes.
pub const MAX_TEXT_BYTES: usize = 4 * 1024 * 1024;

/// The tokenizer of an encoding, with the encoding's name.
pub fn encoding(name: &str) -> Option<(&'static str, &'static Tokenizer)> {
    match name {
        "o200k_base" => Some(("o200k_base", bpe_openai::o200k_base())),
        "cl100k_base" => Some(("cl100k_base", bpe_openai::cl100k_base())),
        _ => None,
    }
}

/// How many tokens the text has.
pub fn count(tokenizer: &Tokenizer, text: &str) -> Result<i64, ApiError> {
    check_length(text)?;
    Ok(i64::try_from(tokenizer.count(text)).expect("no more tokens than bytes"))
}

/// The bytes of each token. A token may end inside a character.
pub fn split(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Vec<u8>>, ApiError> {
    check_length(text)?;
    let tokens = tokenizer.encode(text).into_iter();
    Ok(tokens.map(|token| tokenizer.bpe.token_bytes(token).to_vec()).collect())
}

/// That no exact tokenizer is known.
pub fn unknown(model: &str) -> ApiError {
    let message = format!(
        "no exact tokenizer is built in for {model:?}: name an encoding (o200k_base, cl100k_base) or \
         set `tokenizer` in the rate card"
    );
    ApiError::new(ErrorReason::UnknownTokenizer, message).with("model", model)
}

fn check_length(text: &str) -> Result<(), ApiError> {
    if text.len() <= MAX_TEXT_BYTES {
        return Ok(());
    }
    let message = format!("{} bytes; at most {MAX_TEXT_BYTES} are counted at once", text.len());
    Err(ApiError::field("text", message))
}
