"""One script per page; `app.navigation` lists them. (Not `pages/`: Streamlit scans that name.)"""
