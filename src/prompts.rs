//! What pages are read for: the default prompt, and the questions of the training data.

/// What a page is read for when nobody says otherwise: the server's `/extract` and the command line use it.
///
/// It is one sentence because the embedded model was trained with one short prompt: it copies pages unharmed after this
/// one (0.98 or more of the characters on pages it knows), while one of a hundred tokens spoils its reading.
pub const EXTRACTION_PROMPT: &str = "\
Extract diagnoses, medications with dosage and route, laboratory values with units and reference ranges, vital signs, \
procedures and recommendations, structured, with every number exactly as shown.";

/// Ten questions about a medical page; a sample's is drawn from them.
pub const PROMPTS: [&str; 10] = [
    "List every medical term, diagnosis and clinical finding on this page.",
    "Which diagnoses, conditions and abnormalities does this page name?",
    "List all medications on this page with their doses.",
    "Extract all measurements, laboratory values and vital signs from this page.",
    "Describe what was found, in the page's own words.",
    "Extract the key information from this medical page.",
    "Which conditions, treatments and procedures does this page mention?",
    "Summarise this medical page.",
    "Name the anatomical structures, the pathology and the measurements on this page.",
    "Extract the patient's data, the diagnoses and the treatment plan.",
];
