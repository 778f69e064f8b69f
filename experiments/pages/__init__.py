"""The report: sentences, tables, figures and the page, from what workdirs hold."""
