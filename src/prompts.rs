//! The default extraction prompt, and the prompts of the training data.

/// Default prompt of `medvision extract` and of the server's `/extract`.
///
/// It is one sentence because the embedded model was trained with one short prompt: with this one it transcribes at least 98 % of
/// the characters of pages in its styles; a prompt of a hundred tokens degrades it.
pub const EXTRACTION_PROMPT: &str = "\
Extract diagnoses, medications with dosage and route, laboratory values with units and reference ranges, vital signs, \
procedures and recommendations, structured, with every number exactly as shown.";

/// Ten prompts about a medical page; each training sample gets a random one.
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
