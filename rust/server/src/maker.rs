//! Who made a reservation, where that matters later: the sidecar, which alone ends what it holds to
//! meter others, or a token, since what that holds ends with it.
//!
//! A label of the reservation says it, which no caller can give and which outlives the daemon.

/// The label's name; `convert` refuses such names from callers.
pub(crate) const LABEL: &str = "bursar.maker";
const SIDECAR: &str = "sidecar";
const TOKEN: &str = "token ";

/// Who made a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker<'a> {
    /// The proxy or the watchdog.
    Sidecar,
    /// Who has shown the token of this id.
    Token(&'a str),
    /// Anybody else.
    Other,
}

impl<'a> Maker<'a> {
    /// The one that a label tells of.
    pub(crate) fn of(label: Option<&'a str>) -> Maker<'a> {
        match label {
            Some(SIDECAR) => Maker::Sidecar,
            Some(text) => text.strip_prefix(TOKEN).map_or(Maker::Other, Maker::Token),
            None => Maker::Other,
        }
    }

    /// What the label says, if there has to be one.
    pub(crate) fn label(self) -> Option<(String, String)> {
        let text = match self {
            Maker::Sidecar => SIDECAR.to_owned(),
            Maker::Token(id) => format!("{TOKEN}{id}"),
            Maker::Other => return None,
        };
        Some((LABEL.to_owned(), text))
    }
}
