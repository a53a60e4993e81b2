// The ten prompts of the training data (src/prompts.rs): what the adapter has learned to answer. A test compares both lists.
export const PROMPTS = [
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
