def panels(*a): return []
