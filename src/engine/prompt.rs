//! The default prompt.

/// What a page is read for when nobody says otherwise: the server's `/extract` and the command line use it.
///
/// It is one sentence because the embedded model was trained with one short prompt: it copies pages unharmed after this
/// one (0.98 or more of the characters on pages it knows), while one of a hundred tokens spoils its reading.
pub const EXTRACTION_PROMPT: &str = "\
Extract diagnoses, medications with dosage and route, laboratory values with units and reference ranges, vital signs, \
procedures and recommendations, structured, with every number exactly as shown.";
