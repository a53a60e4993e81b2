// Runs before the first paint, so that a chosen theme does not flash. The theme is all that this page stores.
try {
	const theme = localStorage.getItem("theme");
	if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
	// Storage is disabled: the system's theme is used.
}
