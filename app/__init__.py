"""The feature browser (Streamlit): pages over `sae.features`, a model only on demand.

Run it with `sae browse RUN`.
"""
