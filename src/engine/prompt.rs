//! The default prompt.

/// What a page is read for when nobody says otherwise: the server's `/extract` and the command line use it.
pub const EXTRACTION_PROMPT: &str = "\
Extract the medical information from this document. Report, under these headings and only where the document has it:
1. Diagnoses and conditions
2. Medications, each with its dosage and route
3. Laboratory values, each with its unit and reference range
4. Vital signs
5. Procedures
6. Recommendations and follow-up
Copy every number exactly as it is shown. Add nothing that the document does not say.";
